//! `flotilla help`: the manual, made from the same definition as the command line; and `flotilla completions`.

use super::{CommandError, print};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(crate) struct HelpArgs {
    /// Of this command, such as `put` or `cluster shards`.
    command: Vec<String>,
    /// As a manual page: `flotilla help put --man | man -l -`.
    #[arg(long, conflicts_with = "man_dir")]
    man: bool,
    /// Write the manual pages of all commands into a folder, such as /usr/local/share/man/man1.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    man_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// For which shell; for bash: `source <(flotilla completions bash)`.
    shell: Shell,
}

impl HelpArgs {
    pub(super) fn run(self) -> Result<ExitCode, CommandError> {
        let mut program = crate::Flotilla::command();
        if let Some(folder) = self.man_dir {
            clap_mangen::generate_to(program, folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        program.build();
        let mut found = &mut program;
        for word in &self.command {
            let name = found.get_bin_name().unwrap_or("flotilla").to_owned();
            found = found
                .find_subcommand_mut(word)
                .ok_or_else(|| CommandError::Usage(format!("there is no command `{name} {word}`; `{name} --help` lists them")))?;
        }
        if !self.man {
            let text = found.render_long_help();
            let text = if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
            print(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(found.clone()).render(&mut page)?;
        print(&page)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl CompletionsArgs {
    pub(super) fn run(self) -> Result<ExitCode, CommandError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Flotilla::command(), "flotilla", &mut script);
        print(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
