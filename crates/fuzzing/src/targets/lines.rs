//! The lines that `flotilla import` reads from files.

use flotilla::lines::Item;
use flotilla_api::http::write_item;
use flotilla_types::{Key, Version};

pub(super) fn ndjson_line(input: &[u8]) {
    let Ok(item) = Item::parse(input.to_vec()) else { return };
    assert_eq!(item.line, input);
    let Ok(key) = Key::new(item.key.clone()) else { return };
    let mut line = Vec::new();
    write_item(&mut line, &key, Version(1), item.value.as_deref());
    let again = Item::parse(line).expect("what is exported can be imported");
    assert_eq!((again.key, again.value), (item.key, item.value));
}

pub(super) fn ndjson_line_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "{\"key\":\"a\",\"value\":\"1\",\"version\":7}",
        "{\"key_b64\":\"/w==\",\"value_b64\":\"AAE=\",\"version\":7}",
        "{\"key\":\"\\u00e4\\n\"}",
        "{\"error\":{\"status\":503,\"detail\":\"no quorum\"}}",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}
