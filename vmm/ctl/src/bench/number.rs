//! Numbers for people.

/// A number with the digits that are read in a plot: `24.5 M`, `1203`, `0.871`.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let scales = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")];
    let (scaled, suffix) = match scales.into_iter().find(|(from, _)| size >= *from) {
        Some((from, suffix)) => (value / from.min(if from == 1e4 { 1e3 } else { from }), suffix),
        None => (value, ""),
    };
    let digits = match scaled.abs() {
        0.0 => 0,
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    format!("{}{suffix}", without_zeros(&format!("{scaled:.digits$}")))
}

/// All its digits.
pub(super) fn whole(value: f64) -> String {
    format!("{value}")
}

fn without_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

/// Round steps that divide what is between two numbers into a few parts.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    if !rough.is_finite() || rough <= 0.0 {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|part| part * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    // A scale of five parts has six ends; what rounding adds is no more.
    (first..first + 8)
        .map(|at| at as f64 * step)
        .take_while(|at| *at <= high + step * 1e-9)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_are_read() {
        let cases = [
            (0.0, "0"),
            (0.871_4, "0.871"),
            (-0.05, "-0.05"),
            (12.0, "12"),
            (48.25, "48.25"),
            (536.04, "536"),
            (2410.0, "2410"),
            (24_512_345.0, "24.51 M"),
            (15_432.0, "15.43 k"),
            (1.16e9, "1.16 G"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_scale_has_a_few_round_steps() {
        assert_eq!(ticks(0.0, 24.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(ticks(-1.0, 1.0), [-1.0, -0.5, 0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.0, 0.0), [0.0]);
        assert_eq!(ticks(0.0, f64::NAN), [0.0]);
    }
}
