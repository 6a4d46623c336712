//! The one table of what can go wrong: a stable code, and what each door makes of it.

/// What a client should do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Try again, after `Retry-After` if it is given. A write of unknown outcome may then happen twice.
    Retry,
    /// Change the request, or the state it depends on.
    Fix,
    /// Neither helps: an operator must look, or the feature is not there.
    GiveUp,
}

impl Advice {
    /// One word for tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Advice::Retry => "retry",
            Advice::Fix => "fix",
            Advice::GiveUp => "give up",
        }
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:literal, exit $exit:literal, $advice:ident, $redis:expr, $title:literal;)+) => {
        /// A kind of failure that clients may rely on. Codes are never renamed and never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),+];

            /// The stable `code`.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $code),+ }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status),+ }
            }

            /// The exit code of the client commands.
            pub const fn exit_code(self) -> u8 {
                match self { $(ErrorCode::$name => $exit),+ }
            }

            /// What a client should do.
            pub const fn advice(self) -> Advice {
                match self { $(ErrorCode::$name => Advice::$advice),+ }
            }

            /// How the Redis door's error begins; `None` until that door answers this.
            pub const fn redis(self) -> Option<&'static str> {
                match self { $(ErrorCode::$name => $redis),+ }
            }

            /// The problem document's `title`: the kind of failure for people.
            pub const fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title),+ }
            }
        }
    };
}

// code, HTTP status, exit code, advice, Redis error, title.
error_codes! {
    /// The request is no HTTP that this server understands.
    MalformedRequest = "malformed_request", 400, exit 2, Fix, None, "Malformed request";
    /// The path names a key of no bytes.
    KeyEmpty = "key_empty", 400, exit 2, Fix, None, "Empty key";
    /// A `%` in a path or query is not followed by two hexadecimal digits.
    BadEncoding = "bad_encoding", 400, exit 2, Fix, None, "Bad percent-encoding";
    /// The route has no such query parameter.
    UnknownParameter = "unknown_parameter", 400, exit 2, Fix, None, "Unknown query parameter";
    /// A query parameter stands twice.
    RepeatedParameter = "repeated_parameter", 400, exit 2, Fix, None, "Repeated query parameter";
    /// A query parameter's value is malformed or out of bounds.
    BadParameter = "bad_parameter", 400, exit 2, Fix, None, "Bad query parameter";
    /// An `If-Match` or `If-None-Match` is malformed.
    BadCondition = "bad_condition", 400, exit 2, Fix, None, "Malformed condition";
    /// An `Idempotency-Key` is empty, too long, or stands twice.
    BadIdempotencyKey = "bad_idempotency_key", 400, exit 2, Fix, None, "Bad Idempotency-Key";
    /// The body is not what the route takes.
    BadBody = "bad_body", 400, exit 2, Fix, None, "Malformed body";
    /// The body ended before its end.
    BodyCutShort = "body_cut_short", 400, exit 1, Retry, None, "Body cut short";
    /// A web page of another origin sent the request.
    CrossOrigin = "cross_origin", 403, exit 1, GiveUp, None, "Request from another origin";
    /// There is no such key.
    KeyAbsent = "key_absent", 404, exit 3, Fix, None, "No such key";
    /// There is no such path.
    NoRoute = "no_route", 404, exit 1, Fix, None, "No such path";
    /// There is no such member.
    NodeAbsent = "node_absent", 404, exit 1, Fix, None, "No such node";
    /// There is no such shard.
    ShardAbsent = "shard_absent", 404, exit 1, Fix, None, "No such shard";
    /// The path does not take this method; `Allow` names those it takes.
    MethodNotAllowed = "method_not_allowed", 405, exit 2, Fix, None, "Method not allowed";
    /// The rest of the request did not come in time.
    RequestStalled = "request_stalled", 408, exit 1, Retry, None, "No progress of the request";
    /// Another node has the joiner's name.
    NameTaken = "name_taken", 409, exit 1, Fix, None, "Name taken";
    /// The joiner is not reached where it says it is.
    AddressUnreachable = "address_unreachable", 409, exit 1, Fix, None, "Address not reached";
    /// The step would lose data, a quorum or failover; the detail says what to do instead.
    UnsafeStep = "unsafe_step", 409, exit 1, Fix, None, "Unsafe step refused";
    /// The key's value is no integer, so it cannot be incremented.
    NotAnInteger = "not_an_integer", 409, exit 1, Fix, None, "Not an integer";
    /// The sum would not fit into a signed integer of 64 bits.
    IncrementOverflow = "increment_overflow", 409, exit 1, Fix, None, "Increment would overflow";
    /// The key's version is not what the condition asks for.
    ConditionFailed = "condition_failed", 412, exit 1, Fix, None, "Condition failed";
    /// The value or body is larger than what is allowed.
    TooLarge = "too_large", 413, exit 1, Fix, None, "Value too large";
    /// The key has more bytes than what is allowed.
    KeyTooLong = "key_too_long", 414, exit 2, Fix, None, "Key too long";
    /// Another request bore the same `Idempotency-Key` before.
    IdempotencyKeyReused = "idempotency_key_reused", 422, exit 1, Fix, None, "Idempotency-Key of another request";
    /// The request's head has more bytes or fields than what is allowed.
    HeadersTooLarge = "headers_too_large", 431, exit 1, Fix, None, "Header too large";
    /// A bug in the server; its traces say more.
    Internal = "internal", 500, exit 1, GiveUp, None, "Internal error";
    /// Stored bytes failed their checksum; they are not served.
    Damaged = "damaged", 500, exit 1, GiveUp, None, "Stored data is damaged";
    /// Part of the contract, not built in this release.
    NotBuilt = "not_built", 501, exit 1, GiveUp, None, "Not built yet";
    /// The node has as much work under way as it takes.
    Overloaded = "overloaded", 503, exit 1, Retry, None, "Over capacity";
    /// The shard remembers as many requests with an `Idempotency-Key` as it may.
    IdempotencyTableFull = "idempotency_table_full", 503, exit 1, Retry, None, "Too many Idempotency-Keys";
    /// The shard has no leader that can be reached, or no quorum.
    NoQuorum = "no_quorum", 503, exit 1, Retry, None, "No quorum";
    /// The node is not, or not yet, part of a cluster.
    NotMember = "not_member", 503, exit 1, Retry, None, "Not a member of a cluster";
    /// The node does not know the leaders of its shards yet.
    NotReady = "not_ready", 503, exit 1, Retry, None, "Not ready";
    /// The node is shutting down; another may serve.
    ShuttingDown = "shutting_down", 503, exit 1, Retry, None, "Shutting down";
    /// Time ran out; whether a write happened is said by its outcome.
    Timeout = "timeout", 504, exit 1, Retry, None, "Out of time";
    /// A disk is full; reads and deletes may still work.
    DiskFull = "disk_full", 507, exit 1, Fix, None, "Disk full";
}

impl ErrorCode {
    /// Seconds for `Retry-After`, on what passes by itself.
    pub const fn retry_after_seconds(self) -> Option<u32> {
        match self.status() {
            429 | 503 => Some(1),
            _ => None,
        }
    }

    /// The table as Markdown, as it stands in `docs/api.md`.
    pub fn markdown_table() -> String {
        let mut table = String::from("| code | status | exit | advice | meaning |\n|---|---|---|---|---|\n");
        for code in ErrorCode::ALL {
            let advice = code.advice().as_str();
            table += &format!("| `{}` | {} | {} | {advice} | {} |\n", code.as_str(), code.status(), code.exit_code(), code.title());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_in_the_order_of_their_status() {
        let codes: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
        assert!(ErrorCode::ALL.is_sorted_by_key(|code| code.status()));
        assert!(ErrorCode::ALL.iter().all(|code| (400..600).contains(&code.status())));
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let document = include_str!("../../../docs/api.md");
        let table = ErrorCode::markdown_table();
        assert!(document.contains(&table), "docs/api.md must contain:\n{table}");
    }
}
