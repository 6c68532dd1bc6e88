//! VMs as jobs of Slurm: tag storage as a generic resource of a node, and jobs that run VMs.

pub mod args;
mod gres;
mod node;
mod run;
mod slurm;

use self::args::FleetCommand;
use crate::failure::Failure;
use crate::output::Form;

/// Does what is asked; the exit status.
///
/// # Errors
/// When the broker or Slurm cannot be reached, or refuses.
pub fn fleet(command: &FleetCommand, form: Form) -> Result<u8, Failure> {
    match command {
        FleetCommand::Gres(args) => gres::gres(args, form).map(|()| 0),
        FleetCommand::Run(args) => run::run(args, form),
    }
}
