//! The balloon of a VM.

use arch::units::Bytes;
use vmm::api::model::{BalloonStatsUpdate, BalloonUpdate};

use crate::cli::{BalloonArgs, BalloonCommand, Switch};
use crate::failure::Failure;
use crate::output::Form;
use crate::report;
use crate::target::Target;

/// Shows or changes it.
///
/// # Errors
/// When the VM cannot be reached or refuses.
pub fn balloon(args: &BalloonArgs, form: Form) -> Result<(), Failure> {
    let mut client = Target::find(&args.of.vm)?.client()?;
    let outcome = match args.command {
        None => return form.show(&client.balloon()?, report::balloon),
        Some(BalloonCommand::Stats { seconds: None }) => {
            return form.show(&client.balloon_statistics()?, report::statistics);
        }
        // The guest takes its time.
        Some(BalloonCommand::Target { size }) => {
            let amount_mib = Some(size.as_mib());
            client.patch_balloon(BalloonUpdate { amount_mib, ..BalloonUpdate::default() })?;
            format!("target {size}")
        }
        Some(BalloonCommand::Reporting { switch }) => {
            let free_page_reporting = Some(switch == Switch::On);
            client
                .patch_balloon(BalloonUpdate { free_page_reporting, ..BalloonUpdate::default() })?;
            format!("reporting {}", if switch == Switch::On { "on" } else { "off" })
        }
        Some(BalloonCommand::Auto { switch, floor }) => {
            let auto = Some(switch == Switch::On);
            let floor_mib = floor.map(Bytes::as_mib);
            client.patch_balloon(BalloonUpdate { auto, floor_mib, ..BalloonUpdate::default() })?;
            format!("auto {}", if switch == Switch::On { "on" } else { "off" })
        }
        Some(BalloonCommand::Stats { seconds: Some(seconds) }) => {
            let update = BalloonStatsUpdate { stats_polling_interval_s: seconds };
            client.patch_balloon_statistics(update)?;
            match seconds {
                0 => "statistics off".to_owned(),
                seconds => format!("statistics every {seconds} s"),
            }
        }
    };
    form.outcome(&outcome)
}
