//! The words of `--ulimit`, which are docker's and podman's: NAME=SOFT[:HARD].

use agentd_init::plan::{Limit, LimitedResource};

const ALL: [LimitedResource; 15] = [
    LimitedResource::Core,
    LimitedResource::CpuTime,
    LimitedResource::Data,
    LimitedResource::FileSize,
    LimitedResource::Locks,
    LimitedResource::LockedMemory,
    LimitedResource::MessageQueues,
    LimitedResource::Nice,
    LimitedResource::OpenFiles,
    LimitedResource::Processes,
    LimitedResource::ResidentSet,
    LimitedResource::RealTimePriority,
    LimitedResource::RealTimeTime,
    LimitedResource::PendingSignals,
    LimitedResource::Stack,
];

/// One limit; without HARD that is SOFT. -1 is none.
pub(super) fn parse(text: &str) -> Result<Limit, String> {
    let named = text
        .split_once('=')
        .and_then(|(name, values)| Some((ALL.into_iter().find(|resource| resource.names().1 == name)?, values)));
    let Some((resource, values)) = named else {
        let names = ALL.map(|resource| resource.names().1).join(", ");
        return Err(format!("write NAME=SOFT[:HARD], with a NAME of {names}"));
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "-1" => Ok(None),
        _ => text
            .parse::<u64>()
            .map(Some)
            .map_err(|_no_number| format!("`{}` is no number; -1 is no limit", text.escape_debug())),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err("the soft limit is above the hard one".to_owned());
    }
    Ok(Limit { resource, soft, hard })
}

/// Of limits on the same resource the last, as docker has it: what a file says comes before what the line says, and a hard
/// limit that was set cannot be raised again.
pub(super) fn last(mut limits: Vec<Limit>) -> Vec<Limit> {
    let all = limits.clone();
    let mut at = 0;
    limits.retain(|limit| {
        at += 1;
        !all.iter().skip(at).any(|later| later.resource == limit.resource)
    });
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_are_dockers_words() {
        let limit = |resource, soft, hard| Ok(Limit { resource, soft, hard });
        assert_eq!(parse("nofile=100"), limit(LimitedResource::OpenFiles, Some(100), Some(100)));
        assert_eq!(parse("nofile=100:200"), limit(LimitedResource::OpenFiles, Some(100), Some(200)));
        assert_eq!(parse("core=0:-1"), limit(LimitedResource::Core, Some(0), None));
        for bad in [
            "",
            "nofile",
            "nofile=",
            "nofile=x",
            "nofile=1:",
            "nofile=2:1",
            "nofile=-1:5",
            "bogus=1",
            "=1",
            "nofile=-2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_limit_or_refused(text in "[a-z]{0,8}=?[0-9:-]{0,30}") {
            if let Ok(limit) = parse(&text) {
                prop_assert!(limit.hard.is_none_or(|hard| limit.soft.is_some_and(|soft| soft <= hard)));
            }
        }
    }
}
