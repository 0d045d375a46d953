//! Mean, percentiles and paired ratios of a handful of samples.

/// Of a non-empty list; 0 for an empty one.
pub(super) fn mean(values: &[f64]) -> f64 {
    let count: f64 = values.iter().map(|_| 1.0).sum();
    if count == 0.0 { 0.0 } else { values.iter().sum::<f64>() / count }
}

/// The smallest value that `percent` of all are not above (nearest rank).
pub(super) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Ratio of means and ratio of medians of two contestants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) means: f64,
    pub(super) medians: f64,
}

/// `of` by `by`, one sample a round each, over the rounds both succeeded in; `None` when there is none.
pub(super) fn ratio(of: &[Option<f64>], by: &[Option<f64>]) -> Option<Ratio> {
    let both = of.iter().zip(by).filter_map(|(of, by)| Some(((*of)?, (*by)?)));
    let (of, by): (Vec<f64>, Vec<f64>) = both.unzip();
    if of.is_empty() {
        return None;
    }
    Some(Ratio { means: mean(&of) / mean(&by), medians: percentile(&of, 50) / percentile(&by, 50) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values, 0), 1.0);
        assert_eq!(percentile(&[], 50), 0.0);
        assert_eq!(mean(&[1.0, 2.0]), 1.5);
    }

    #[test]
    fn a_ratio_takes_only_the_rounds_both_ran_in() {
        let of = [Some(100.0), Some(4.0), None];
        let by = [None, Some(2.0), Some(9.0)];
        assert_eq!(ratio(&of, &by), Some(Ratio { means: 2.0, medians: 2.0 }));
        assert_eq!(ratio(&of, &[None; 3]), None);
    }
}
