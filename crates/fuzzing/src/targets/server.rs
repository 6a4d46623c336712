//! Frames and handshakes on the peer port, and the bodies of a join.

use super::node::{encoded, messages};
use bytes::{Bytes, BytesMut};
use flotilla_node::message::Channel;
use flotilla_node::request::JoinRequest;
use flotilla_server::http::join as join_bodies;
use flotilla_server::peer::frame::{FrameReader, FrameWriter};
use flotilla_server::peer::handshake::{Answer, Hello};
use flotilla_types::{ClusterId, NodeId};

/// The bytes of a connection, the checksums of their frames put right.
pub(super) fn peer_frames(input: &[u8]) {
    let mut bytes = input.to_vec();
    let mut at = 0;
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = at + 8 + u32::from_le_bytes(*length) as usize;
        let Some(payload) = bytes.get(at + 8..end) else { break };
        let checksum = crc32c::crc32c(payload).to_le_bytes();
        bytes[at + 4..at + 8].copy_from_slice(&checksum);
        at = end;
    }
    let (mut reader, mut buffer, mut messages) = (FrameReader::default(), BytesMut::from(bytes.as_slice()), Vec::new());
    loop {
        let missing = reader.missing_bytes(&buffer);
        match reader.next(&mut buffer, &mut messages) {
            Ok(true) => assert_eq!(missing, 0),
            Ok(false) => {
                assert!(missing > 0, "it says what it waits for");
                break;
            }
            Err(_) => break,
        }
    }
    // What came out goes back in.
    let mut writer = FrameWriter::default();
    messages.iter().for_each(|message| writer.push(message));
    let (mut reader, mut buffer, mut again) = (FrameReader::default(), BytesMut::new(), Vec::new());
    while !writer.chunk().is_empty() {
        let chunk = writer.chunk().to_vec();
        writer.advance(chunk.len());
        buffer.extend_from_slice(&chunk);
    }
    while reader.next(&mut buffer, &mut again).expect("our own frames") {}
    // Large ones come later than small ones behind them.
    let sorted = |messages: &[flotilla_node::PeerMessage]| {
        let mut all: Vec<Bytes> = messages.iter().map(encoded).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&again), sorted(&messages));
}

pub(super) fn peer_frames_seeds() -> Vec<Vec<u8>> {
    let framed = |messages: &[flotilla_node::PeerMessage]| {
        let mut writer = FrameWriter::default();
        messages.iter().for_each(|message| writer.push(message));
        writer.chunk().to_vec()
    };
    let all = messages();
    let mut seeds: Vec<Vec<u8>> = all.chunks(3).map(framed).collect();
    // The parts of a large message.
    let message = encoded(&all[0]);
    let part = |last: u8, bytes: &[u8]| {
        let payload = [&[2, last], bytes].concat();
        [&(payload.len() as u32).to_le_bytes(), &crc32c::crc32c(&payload).to_le_bytes(), payload.as_slice()].concat()
    };
    seeds.push([part(0, &message[..4]), part(1, &message[4..])].concat());
    seeds
}

pub(super) fn handshake(input: &[u8]) {
    if let Ok(hello) = Hello::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Hello::decode(hello.encode().freeze()), Ok(hello));
    }
    if let Ok(answer) = Answer::decode(Bytes::copy_from_slice(input)) {
        let again = Answer::decode(answer.encode().freeze()).expect("our own bytes");
        // A reason may be cut to what an answer holds.
        match (&again, &answer) {
            (Answer::Refused { reason: cut }, Answer::Refused { reason }) => assert!(reason.starts_with(cut.as_str())),
            _ => assert_eq!(again, answer),
        }
    }
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        formats: (1, 1),
        cluster: ClusterId(7),
        node: NodeId(1),
        to: NodeId(2),
        incarnation: 5,
        number: 1,
        channel: Channel::Main,
        address: Some("h:1".to_owned()),
    };
    let answers = [Answer::Accepted { format: 1 }, Answer::Refused { reason: "another cluster".into() }];
    let mut seeds = vec![hello.encode().to_vec()];
    seeds.extend(answers.iter().map(|answer| answer.encode().to_vec()));
    seeds
}

pub(super) fn join(input: &[u8]) {
    if let Ok(request) = join_bodies::decode_request(input) {
        assert_eq!(join_bodies::decode_request(&join_bodies::encode_request(&request)), Ok(request));
    }
    let _ = join_bodies::decode_answer(input);
    assert_eq!(join_bodies::decode_answer(&join_bodies::encode_answer(input)).as_deref(), Some(input));
}

pub(super) fn join_seeds() -> Vec<Vec<u8>> {
    let request = JoinRequest {
        id: NodeId(7),
        name: "n1".into(),
        http: "h:1".into(),
        peer: "h:2".into(),
        resp: None,
        zone: String::new(),
        weight: 100,
        formats: (1, 1),
        replace: false,
    };
    vec![join_bodies::encode_request(&request), join_bodies::encode_answer(b"state")]
}
