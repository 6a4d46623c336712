//! Byte sizes, as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes; in files and flags `"64MiB"`, `"512KiB"`, `"100"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let wrong = || format!("{text:?} is no size: give a whole number with B, KiB, MiB or GiB, such as 64MiB");
        let (digits, factor) = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1));
        digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(ByteSize).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS.iter().find(|(_, factor)| self.0 >= *factor).unwrap_or(&UNITS[3]);
        if self.0.is_multiple_of(*factor) {
            write!(f, "{}{unit}", self.0 / factor)
        } else {
            write!(f, "{:.1}{unit}", self.0 as f64 / *factor as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn reads_what_it_writes() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1KiB", 1024), ("7B", 7), ("0B", 0)] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert!("64MB".parse::<ByteSize>().is_err() && "".parse::<ByteSize>().is_err());
    }
}
