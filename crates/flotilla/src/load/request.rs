//! Requests as bytes: everything but the key is formed ahead, so that sending one is a copy.

use super::keys::key_of;
use flotilla_api::base64;
use flotilla_types::Rng;
use std::net::SocketAddr;

/// What the servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Flotilla's HTTP API.
    Flotilla,
    /// The JSON gateway of etcd's v3 API.
    EtcdGateway,
}

/// The two kinds of requests for one target, with room for the key.
#[derive(Clone, Debug)]
pub struct Requests {
    protocol: Protocol,
    put: Template,
    get: Template,
}

#[derive(Clone, Debug)]
struct Template {
    before_key: Vec<u8>,
    after_key: Vec<u8>,
}

impl Requests {
    /// Requests to `target`, with values of `value_bytes` that do not compress.
    pub fn new(protocol: Protocol, target: SocketAddr, value_bytes: usize, seed: u64) -> Requests {
        let mut rng = Rng::new(seed);
        let value: Vec<u8> = (0..value_bytes).map(|_| b'!' + rng.below(94) as u8).collect();
        let template = |before: String, after: Vec<u8>| Template { before_key: before.into_bytes(), after_key: after };
        match protocol {
            Protocol::Flotilla => {
                let put_tail = format!(" HTTP/1.1\r\nhost: {target}\r\ncontent-length: {value_bytes}\r\n\r\n");
                let get_tail = format!(" HTTP/1.1\r\nhost: {target}\r\n\r\n");
                Requests {
                    protocol,
                    put: template("PUT /v1/kv/".into(), [put_tail.as_bytes(), &value].concat()),
                    get: template("GET /v1/kv/".into(), get_tail.into_bytes()),
                }
            }
            Protocol::EtcdGateway => {
                let key_length = base64::encode(key_of(0).as_bytes()).len();
                let post = |route: &str, tail: String| {
                    let body_length = r#"{"key":""#.len() + key_length + tail.len();
                    let head = format!(
                        "POST /v3/kv/{route} HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\ncontent-length: {body_length}\r\n\r\n"
                    );
                    template(head + r#"{"key":""#, tail.into_bytes())
                };
                // A range without `serializable` is linearizable, as Flotilla's reads are.
                Requests {
                    protocol,
                    put: post("put", format!(r#"","value":"{}"}}"#, base64::encode(&value))),
                    get: post("range", r#""}"#.into()),
                }
            }
        }
    }

    /// Writes the request for key `number` into `buffer`.
    pub fn write(&self, buffer: &mut Vec<u8>, is_put: bool, number: u64) {
        let template = if is_put { &self.put } else { &self.get };
        buffer.clear();
        buffer.extend_from_slice(&template.before_key);
        match self.protocol {
            Protocol::Flotilla => {
                // The same as `key_of`, without the machinery of formatting.
                let mut digits = *b"bench/000000000000";
                let (mut rest, mut at) = (number, digits.len());
                while rest > 0 && at > 6 {
                    at -= 1;
                    digits[at] = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
                buffer.extend_from_slice(&digits);
            }
            Protocol::EtcdGateway => buffer.extend_from_slice(base64::encode(key_of(number).as_bytes()).as_bytes()),
        }
        buffer.extend_from_slice(&template.after_key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(protocol: Protocol, is_put: bool) -> String {
        let mut buffer = Vec::new();
        Requests::new(protocol, "127.0.0.1:80".parse().expect("an address"), 4, 1).write(&mut buffer, is_put, 1234);
        String::from_utf8(buffer).expect("text")
    }

    #[test]
    fn a_put_states_the_length_it_has() {
        for protocol in [Protocol::Flotilla, Protocol::EtcdGateway] {
            let request = text(protocol, true);
            let (head, body) = request.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{request}");
        }
    }

    #[test]
    fn the_key_is_the_one_named() {
        assert!(text(Protocol::Flotilla, false).starts_with(&format!("GET /v1/kv/{} HTTP/1.1\r\n", key_of(1234))));
        assert!(text(Protocol::EtcdGateway, false).ends_with(&format!(r#"{{"key":"{}"}}"#, base64::encode(key_of(1234).as_bytes()))));
    }
}
