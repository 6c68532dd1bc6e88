//! What the bench `lending` measured, beside what the model says of the same host.

use arch::units::Bytes;
use serde::Serialize;
use vmm::tag_storage::{LendPolicy, TAGS_OF_CHUNK};

use super::host::HostError;
use super::mix::{self, Blocks, Chunks, Found, Start, TAKEN, Touch};
use crate::bench::{Figure, Report, compare};

/// The bench.
pub const BENCH: &str = "lending";
/// What its host has before the first load: a figure's name, and its unit. Of each policy one for each of [`FIRST`].
pub const AT_FIRST: (&str, &str) = ("memory at first", "kB");
/// Chunks of the VM with MTE that were populated when it touched memory: without those that are ahead of its touches.
pub const CHUNKS: (&str, &str) = ("chunks populated in it", "chunks");
/// Blocks that were evicted for these.
pub const EVICTIONS: (&str, &str) = ("evictions in it", "blocks of 4 KiB");
/// Blocks that were lent before.
pub const LENT: (&str, &str) = ("blocks lent before it", "MiB");
/// What the borrower took.
pub const MOST: (&str, &str) = ("borrower has of the host at most", "MiB");
/// What of that is on the node.
pub const ON_NODE: (&str, &str) = ("of that on the node", "MiB");

/// What there is to know of the host before the first load, in the order of [`Start`].
pub const FIRST: [&str; 7] = [
    "free outside the node",
    "free on the node",
    "kept free outside the node",
    "kept free on the node",
    "tag storage",
    "reserved tag storage",
    "borrower's on the node",
];

/// The loads, as the bench names them.
pub fn loads() -> [String; 3] {
    ["idle".to_owned(), format!("{} MiB taken", TAKEN.as_mib()), "all taken".to_owned()]
}

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The report lacks a figure.
    #[error(
        "the report has no `{name}` of `{case}` in its bench `{BENCH}`: make it with `make bench ONLY={BENCH}` of this version"
    )]
    Missing {
        /// The figure's name.
        name: &'static str,
        /// The figure's case.
        case: String,
    },
    /// The model refuses.
    #[error("the model has no such host under {policy}")]
    Model {
        /// The policy.
        policy: LendPolicy,
        /// Why.
        #[source]
        source: HostError,
    },
}

/// A figure that was measured and modelled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The figure's name and case.
    pub figure: String,
    /// Of the numbers.
    pub unit: &'static str,
    /// By the bench; none where there was nothing to measure.
    pub measured: Option<f64>,
    /// By the model; likewise.
    pub modelled: Option<f64>,
    /// How far the model is from what was measured, in percent of that; null where that is 0 and the model's is not, or
    /// where one of them is missing.
    pub percent: Option<f64>,
    /// Whether that is within the tolerance.
    pub agrees: bool,
}

/// All that was compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// By policy and load.
    pub pairs: Vec<Pair>,
    /// Percent by which figures may differ.
    pub tolerance: f64,
}

impl Validation {
    /// How many figures are farther apart than they may be.
    pub fn disagree(&self) -> usize {
        self.pairs.iter().filter(|pair| !pair.agrees).count()
    }
}

/// Models the host of a report of the bench `lending`, and compares what came of it with what the bench measured.
///
/// # Errors
/// When the report lacks a figure, or there can be no such host.
pub fn validate(report: &Report, tolerance: f64) -> Result<Validation, Error> {
    let mut pairs = Vec::new();
    for policy in LendPolicy::ALL {
        let start = start(report, policy)?;
        let found = mix::run(policy, &start).map_err(|source| Error::Model { policy, source })?;
        for ((name, unit), case, modelled) in figures(policy, &found) {
            let measured = value(report, name, &case)?;
            pairs.push(pair((name, unit), &case, (measured, modelled), tolerance));
        }
    }
    Ok(Validation { pairs, tolerance })
}

fn pair(
    (name, unit): (&str, &'static str),
    case: &str,
    (measured, modelled): (Option<f64>, Option<f64>),
    tolerance: f64,
) -> Pair {
    let percent = match (measured, modelled) {
        (Some(measured), Some(modelled)) if measured == modelled => Some(0.0),
        (Some(measured), Some(modelled)) => compare::percent(measured, modelled),
        _ => None,
    };
    // Neither had anything to find, or they are near each other.
    let agrees = measured == modelled || percent.is_some_and(|percent| percent.abs() <= tolerance);
    Pair { figure: format!("{name}, {case}"), unit, measured, modelled, percent, agrees }
}

/// The figures of a mix, as the bench records them.
fn figures(
    policy: LendPolicy,
    found: &Found,
) -> Vec<((&'static str, &'static str), String, Option<f64>)> {
    let mib = |size: Bytes| Some(size.as_mib() as f64);
    let mut all = vec![
        (MOST, policy.to_string(), mib(found.taken)),
        (ON_NODE, policy.to_string(), mib(found.on_node)),
    ];
    for (load, touch) in loads().into_iter().zip(found.touches) {
        let of = |number: fn(Touch) -> u64| touch.map(|touch| number(touch) as f64);
        let case = format!("{policy}, {load}");
        all.push((CHUNKS, case.clone(), of(|touch| touch.chunks.0)));
        all.push((EVICTIONS, case.clone(), of(|touch| touch.evicted.0)));
        all.push((LENT, case, of(|Touch { lent: Blocks(lent), .. }| lent >> 8)));
    }
    all
}

/// What the bench found before the first load.
fn start(report: &Report, policy: LendPolicy) -> Result<Start, Error> {
    let mut sizes = [Bytes::ZERO; FIRST.len()];
    for (size, what) in sizes.iter_mut().zip(FIRST) {
        let case = format!("{policy}, {what}");
        let (name, _) = AT_FIRST;
        let found = value(report, name, &case)?.ok_or(Error::Missing { name, case })?;
        // Figures are checked: below 2^53, and a size is not below 0.
        *size = Bytes::kib(found.max(0.0) as u64);
    }
    let [outside, node, kept_outside, kept_node, tags, reserved, borrowed] = sizes;
    let chunks = Chunks(reserved.get() / TAGS_OF_CHUNK.get());
    Ok(Start { outside, node, kept: (kept_outside, kept_node), tags, chunks, borrowed })
}

/// A figure of the bench: none where there was nothing to measure.
fn value(report: &Report, name: &'static str, case: &str) -> Result<Option<f64>, Error> {
    let is_it =
        |figure: &&Figure| figure.bench == BENCH && figure.name == name && figure.case == case;
    let found = report.figures.iter().find(is_it);
    found.map(|figure| figure.value).ok_or_else(|| Error::Missing { name, case: case.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::samples::figure;

    fn recorded(name: &str, case: &str, value: Option<f64>) -> Figure {
        let mut figure = figure("tessera", 0.0);
        figure.value = value;
        figure.cannot = value.is_none().then(|| "no memory is left to touch".to_owned());
        Figure { bench: BENCH.to_owned(), name: name.to_owned(), case: case.to_owned(), ..figure }
    }

    /// What a bench would record in whose host the model is right: by the model itself.
    fn report() -> Report {
        let mut report = Report::default();
        for policy in LendPolicy::ALL {
            let kib = [716_800, 245_760, 20_480, 4_096, 237_568, 2048, 1024].map(f64::from);
            for (what, kib) in FIRST.iter().zip(kib) {
                let case = format!("{policy}, {what}");
                report.figures.push(recorded(AT_FIRST.0, &case, Some(kib)));
            }
            let found = mix::run(policy, &start(&report, policy).unwrap()).unwrap();
            for ((name, _), case, value) in figures(policy, &found) {
                report.figures.push(recorded(name, &case, value));
            }
        }
        report
    }

    fn measured<'a>(report: &'a mut Report, name: &str, case: &str) -> &'a mut Figure {
        let found = report.figures.iter_mut().find(|one| one.name == name && one.case == case);
        found.unwrap()
    }

    #[test]
    fn what_the_model_says_itself_agrees() {
        let found = validate(&report(), 0.0).unwrap();

        assert_eq!((found.pairs.len(), found.disagree()), (4 * 11, 0));
        let evictions = |case: &str| {
            let figure = format!("{}, {case}", EVICTIONS.0);
            found.pairs.iter().find(|pair| pair.figure == figure).unwrap().measured
        };
        assert_eq!(evictions("eager, all taken"), Some(384.0));
        assert_eq!(evictions("never, all taken"), Some(0.0));
    }

    #[test]
    fn what_is_measured_otherwise_does_not_agree() {
        let of = |name: &str, case: &str, value: Option<f64>| {
            let mut report = report();
            measured(&mut report, name, case).value = value;
            let found = validate(&report, 5.0).unwrap();
            let pair = found.pairs.iter().find(|pair| pair.figure == format!("{name}, {case}"));
            let pair = pair.unwrap();
            assert_eq!(found.disagree(), usize::from(!pair.agrees));
            (pair.agrees, pair.percent)
        };

        let (agrees, percent) = of(EVICTIONS.0, "eager, all taken", Some(400.0));
        assert_eq!((agrees, percent), (true, Some(-4.0)));
        assert_eq!(of(EVICTIONS.0, "eager, all taken", Some(320.0)), (false, Some(20.0)));
        assert_eq!(of(EVICTIONS.0, "eager, all taken", Some(0.0)), (false, None));
        assert_eq!(of(EVICTIONS.0, "eager, idle", Some(16.0)), (false, Some(-100.0)));
        assert_eq!(of(CHUNKS.0, "never, idle", None), (false, None));
        assert!(!of(MOST.0, "balanced", Some(1.0)).0);
    }

    /// A start that is another changes what is modelled, and nothing that was measured.
    #[test]
    fn the_model_begins_as_the_bench_did() {
        let mut report = report();
        let case = format!("eager, {}", FIRST[1]);
        measured(&mut report, AT_FIRST.0, &case).value = Some(300_000.0);

        let found = validate(&report, 5.0).unwrap();

        let pair =
            found.pairs.iter().find(|pair| pair.figure.starts_with("of that on the node, e"));
        assert!(!pair.unwrap().agrees, "{found:?}");
    }

    #[test]
    fn a_figure_that_is_missing_is_named() {
        let mut report = report();
        report.figures.retain(|figure| figure.name != LENT.0);

        let error = validate(&report, 5.0).unwrap_err();

        assert!(
            error.to_string().contains("no `blocks lent before it` of `never, idle`"),
            "{error}"
        );
        assert!(validate(&Report::default(), 5.0).is_err());
    }
}
