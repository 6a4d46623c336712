//! What befalls single nodes: kill -9, standing still, and cuts of their network, of all kinds.

use super::world::World;
use crate::networks::{Cut, Ways};
use flotilla_types::Rng;
use std::rc::Rc;
use std::time::Duration;

/// One that befalls nodes, one at a time, until all are told to stop; at its end nothing is broken any more.
pub(super) async fn befall(world: Rc<World>, at_once_max: usize, pause_ms_max: u64, mut rng: Rng) -> anyhow::Result<()> {
    while !world.stop_faults.get() {
        tokio::time::sleep(Duration::from_millis(rng.between(200, pause_ms_max))).await;
        if world.impaired_count() >= at_once_max || world.stop_faults.get() {
            continue;
        }
        let Some(at) = world.draw_for_fault(&mut rng) else { continue };
        let done = match rng.below(10) {
            0..3 => kill(&world, at, &mut rng).await,
            3..6 => pause(&world, at, &mut rng).await,
            _ => cut(&world, at, &mut rng).await,
        };
        world.free_of_fault(at);
        done?;
    }
    Ok(())
}

async fn kill(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let down = Duration::from_millis(rng.between(50, 3_000));
    world.count("kill -9");
    world.tell(format!("kill -9 of {} for {down:?}", world.name(at)));
    world.cluster.borrow_mut().kill(at);
    tokio::time::sleep(down).await;
    world.relaunch(at)
}

async fn pause(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let still = Duration::from_millis(rng.between(300, 6_000));
    world.count("pause");
    world.tell(format!("{} stands still for {still:?}", world.name(at)));
    world.cluster.borrow().signal(at, libc::SIGSTOP);
    tokio::time::sleep(still).await;
    // Whoever is killed meanwhile is started anew, and goes on.
    world.cluster.borrow().signal(at, libc::SIGCONT);
    Ok(())
}

async fn cut(world: &World, at: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let mut others: Vec<usize> = (0..world.len()).filter(|other| *other != at).collect();
    // From all, from one, or from some.
    while others.len() > 1 && rng.chance(2, 5) {
        others.remove(rng.below(others.len() as u64) as usize);
    }
    let ways = *rng.pick(&[Ways::Both, Ways::Both, Ways::In, Ways::Out]).expect("there are some");
    let cut = Cut { at, others, ways };
    let long = Duration::from_millis(rng.between(500, 8_000));
    world.count(match (ways, cut.others.len() + 1 == world.len()) {
        (Ways::Both, true) => "cut off from all",
        (Ways::Both, false) => "cut off from some",
        _ => "cut off one way",
    });
    let names: Vec<String> = cut.others.iter().map(|other| world.name(*other)).collect();
    world.tell(format!("{} is cut off from {} ({ways:?}) for {long:?}", world.name(at), names.join(", ")));
    world.networks.cut(&cut)?;
    tokio::time::sleep(long).await;
    world.networks.mend(&cut)
}
