//! Operators who change the membership all the time, also while nodes fail under them. The cluster may
//! refuse them; what it grants must come to its end, or be taken back.

use super::world::{Life, World};
use crate::operator::POLL_INTERVAL;
use crate::wire::Reply;
use flotilla_types::Rng;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a removal may take before it is taken back.
const REMOVAL_TIME_MAX: Duration = Duration::from_secs(45);
/// How long the cluster may refuse something before it is given up.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(8);
/// A dead node is held for dead by then.
const FORCE_TIME_MAX: Duration = Duration::from_secs(25);
/// A node that was removed ends by itself by then, if nothing is broken about it.
const END_TIME_MAX: Duration = Duration::from_secs(30);
/// For an answer that must come at some time.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// So many nodes exist always.
const NODES_MIN: usize = 3;

/// What came of an operator's request.
enum Asked {
    Done,
    /// Or nobody said anything else.
    Refused,
    TakesTooLong,
}

/// One operator, until all are told to stop; what it took away is a member again then.
pub(super) async fn operate(world: Rc<World>, pause_ms_max: u64, mut rng: Rng) -> anyhow::Result<()> {
    while !world.stop_operators.get() {
        tokio::time::sleep(Duration::from_millis(rng.between(300, pause_ms_max))).await;
        match rng.below(20) {
            0..3 => move_leaders(&world, &mut rng).await,
            3..5 => rest(&world, &mut rng).await?,
            _ => on_a_node(&world, &mut rng).await?,
        }
    }
    Ok(())
}

async fn on_a_node(world: &World, rng: &mut Rng) -> anyhow::Result<()> {
    if world.len() - world.away.get() <= NODES_MIN {
        return Ok(());
    }
    let Some(at) = world.draw_for_operator(rng) else { return Ok(()) };
    world.away.set(world.away.get() + 1);
    let done = match rng.below(10) {
        0..4 => leave_and_join(world, at, rng).await,
        4..7 => drain(world, at, rng).await,
        _ => force_out(world, at, rng).await,
    };
    world.away.set(world.away.get() - 1);
    world.give_back(at);
    done
}

async fn leave_and_join(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let name = world.name(at);
    world.tell(format!("{name} is to be removed"));
    match ask_until_done(world, at, "DELETE", &format!("/v1/cluster/nodes/{name}"), REMOVAL_TIME_MAX, REFUSAL_TIME_MAX).await {
        Asked::Done => {
            world.count("removed, wiped and joined anew");
            world.tell(format!("{name} is removed"));
            out_and_in(world, at, rng).await
        }
        Asked::Refused => {
            world.count("removal refused");
            // It may have been granted by an answer that was lost.
            undrain(world, at).await
        }
        Asked::TakesTooLong => {
            world.count("removal taken back");
            undrain(world, at).await
        }
    }
}

async fn drain(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let (name, long) = (world.name(at), Duration::from_millis(rng.between(500, 12_000)));
    world.tell(format!("{name} is drained for {long:?}"));
    let path = format!("/v1/cluster/nodes/{name}/drain");
    match ask_until_done(world, at, "POST", &path, long, REFUSAL_TIME_MAX).await {
        Asked::Done => world.count("drained and undrained"),
        Asked::Refused => world.count("drain refused"),
        Asked::TakesTooLong => world.count("undrained half-way"),
    }
    // Also what was refused may have been granted by an answer that was lost.
    undrain(world, at).await
}

async fn undrain(world: &World, at: usize) -> anyhow::Result<()> {
    let name = world.name(at);
    let path = format!("/v1/cluster/nodes/{name}/drain?undo=true");
    // 404: a removal that was given up went through after all.
    match world.operator_beside(at).ask_until("POST", &path, &[200, 202, 404], ANSWER_TIME_MAX).await {
        Ok(reply) if reply.status == 404 => {
            world.count("removed though it was taken back");
            world.tell(format!("{name} was removed before that was taken back"));
            world.set_life(at, Life::Out);
            out_and_in(world, at, &mut Rng::new(0)).await
        }
        Ok(_) => {
            world.tell(format!("{name} holds its share again"));
            Ok(())
        }
        Err(error) => {
            world.blame(format!("{error:#}"));
            Ok(())
        }
    }
}

async fn force_out(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let name = world.name(at);
    world.shield(at).await;
    world.tell(format!("{name} dies for good"));
    world.cluster.borrow_mut().kill(at);
    let path = format!("/v1/cluster/nodes/{name}?force=true");
    let asked = ask_until_done(world, at, "DELETE", &path, FORCE_TIME_MAX, FORCE_TIME_MAX).await;
    let done = match asked {
        Asked::Done => {
            world.count("forced out, wiped and joined anew");
            world.tell(format!("{name} is forced out"));
            world.set_life(at, Life::Out);
            world.free_of_fault(at);
            return out_and_in(world, at, rng).await;
        }
        Asked::Refused | Asked::TakesTooLong => {
            world.count("forcing out refused");
            world.relaunch(at)
        }
    };
    world.free_of_fault(at);
    done
}

/// A node that is no member: it must end by itself; then it is wiped, and comes back after a while.
async fn out_and_in(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    world.set_life(at, Life::Out);
    world.shield(at).await;
    let deadline = Instant::now() + END_TIME_MAX;
    loop {
        let ended = {
            let mut cluster = world.cluster.borrow_mut();
            !cluster.is_running(at) || cluster.has_ended(at)
        };
        if ended {
            break;
        }
        if Instant::now() > deadline {
            world.blame(format!("{} was removed and does not end", world.name(at)));
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    world.cluster.borrow_mut().kill(at);
    tokio::time::sleep(Duration::from_millis(rng.below(2_000))).await;
    // Faults may hit it while it joins.
    world.free_of_fault(at);
    let joined = world.join_anew(at).await;
    if let Err(error) = joined {
        world.blame(format!("{error:#}"));
    }
    Ok(())
}

async fn move_leaders(world: &World, rng: &mut Rng) {
    world.count("leaders moved");
    let mut operator = world.operator_beside(world.len());
    for _ in 0..5 {
        let path = format!("/v1/shards/{}/leader?to={}", rng.below(64), world.name(rng.below(world.len() as u64) as usize));
        match operator.ask("POST", &path).await {
            // 404: its node is away just now.
            Ok(Reply { status: 200 | 202 | 404 | 409, .. }) | Err(_) => {}
            Ok(reply) => world.blame(format!("POST {path}: {} {}", reply.status, String::from_utf8_lossy(&reply.body))),
        }
    }
}

/// Rebalancing rests for a while.
async fn rest(world: &World, rng: &mut Rng) -> anyhow::Result<()> {
    world.count("rebalancing paused and resumed");
    let mut operator = world.operator_beside(world.len());
    // Granted or not, it is taken back.
    let _ = operator.ask("POST", "/v1/cluster/rebalance?paused=true").await;
    tokio::time::sleep(Duration::from_millis(rng.between(500, 4_000))).await;
    if let Err(error) = operator.ask_until("POST", "/v1/cluster/rebalance?paused=false", &[200], ANSWER_TIME_MAX).await {
        world.blame(format!("{error:#}"));
    }
    Ok(())
}

/// Asks until it is done: for so long while it is under way, and for so long while it is refused.
async fn ask_until_done(world: &World, at: usize, method: &str, path: &str, time_max: Duration, refusal_time_max: Duration) -> Asked {
    let mut operator = world.operator_beside(at);
    let began = Instant::now();
    let mut granted = false;
    loop {
        match operator.ask(method, path).await {
            Ok(reply) if reply.status == 200 => return Asked::Done,
            Ok(reply) if reply.status == 202 => granted = true,
            Ok(reply) if reply.status == 409 => {
                if began.elapsed() > refusal_time_max && !granted {
                    world.tell(format!("{method} {path} refused: {}", String::from_utf8_lossy(&reply.body)));
                    return Asked::Refused;
                }
            }
            Ok(reply) => {
                world.blame(format!("{method} {path}: {} {}", reply.status, String::from_utf8_lossy(&reply.body)));
                return Asked::Refused;
            }
            Err(_) => {}
        }
        if began.elapsed() > time_max {
            return if granted { Asked::TakesTooLong } else { Asked::Refused };
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
