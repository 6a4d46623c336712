//! Operators' routes: their parameters, and what they are answered.

use super::answer::Answer;
use super::route::Route;
use flotilla_api::http::{Query, decode_segment};
use flotilla_api::{ErrorCode, Problem};
use flotilla_node::admin::{AdminAction, AdminReply, AdminRequest, AdminVerdict};
use hyper::StatusCode;

/// What is asked by a route and its parameters.
///
/// # Errors
/// If a parameter is malformed.
pub(super) fn request(route: Route<'_>, query: &Query) -> Result<AdminRequest, Problem> {
    let switch = |name: &str| Ok::<_, Problem>(query.switch(name)?.unwrap_or(false));
    let action = match route {
        Route::NodeRemove(name) => AdminAction::Remove { node: decode_segment(name)?, force: switch("force")? },
        Route::NodeDrain(name) if switch("undo")? => AdminAction::Undrain { node: decode_segment(name)? },
        Route::NodeDrain(name) => AdminAction::Drain { node: decode_segment(name)? },
        Route::ShardLeader(id) => {
            let digits = id.strip_prefix('s').unwrap_or(id);
            let shard = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let absent = || Problem::new(ErrorCode::ShardAbsent, format!("{id:?} is no shard's number"));
            AdminAction::MoveLeader { shard: shard.ok_or_else(absent)?, to: query.text("to")?.map(str::to_owned) }
        }
        Route::Recover => AdminAction::Recover { plan: query.text("plan")?.map(str::to_owned) },
        _ => {
            let (paused, rate) = (query.switch("paused")?, query.size("bytes_per_second")?);
            AdminAction::SetRebalancing { paused, bytes_per_second: rate.map(|rate| rate.0) }
        }
    };
    Ok(AdminRequest { action, dry_run: switch("dry_run")? })
}

/// The answer to an operator.
pub(super) fn answer(AdminReply { verdict, body }: AdminReply) -> Answer {
    let refusal = |code: ErrorCode| Answer::problem(&Problem::new(code, String::from_utf8_lossy(&body).into_owned()));
    match verdict {
        AdminVerdict::Done => Answer::json(StatusCode::OK, body),
        AdminVerdict::UnderWay => Answer::json(StatusCode::ACCEPTED, body),
        AdminVerdict::NodeAbsent => refusal(ErrorCode::NodeAbsent),
        AdminVerdict::ShardAbsent => refusal(ErrorCode::ShardAbsent),
        AdminVerdict::Unsafe => refusal(ErrorCode::UnsafeStep),
    }
}
