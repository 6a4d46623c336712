//! Where the `flotilla` binary is: beside this program, built first if it is not there.

use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The binary of the same build profile as this program, or the one that `FLOTILLA_BINARY` names.
///
/// # Errors
/// If it is not there and cannot be built.
pub fn flotilla_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("FLOTILLA_BINARY") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("finding this program")?;
    // target/PROFILE/flotilla-harness, or target/PROFILE/deps/TEST-HASH.
    let folder = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).context("a program lies in a folder")?;
    build(folder)?;
    let binary = folder.join("flotilla");
    if binary.is_file() { Ok(binary) } else { bail!("{} is not there: cargo build -p flotilla", binary.display()) }
}

/// Cargo sees by itself whether there is anything to do; without it, an old binary would be tested.
fn build(folder: &Path) -> anyhow::Result<()> {
    let Some(target) = folder.parent() else { bail!("{} is no build folder", folder.display()) };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bin", "flotilla", "--target-dir"]).arg(target);
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => _ = command.args(["--profile", profile]),
    }
    // Without cargo, on a machine that has only the binaries, what is there is used.
    if let Ok(status) = command.current_dir(env!("CARGO_MANIFEST_DIR")).status() {
        ensure!(status.success(), "building flotilla failed");
    }
    Ok(())
}
