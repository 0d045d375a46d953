//! From how attempts ended to what stopped the attack.
//!
//! Nothing is claimed that was not seen. An attack that a box stops is tried again where it can work: with all walls away
//! that can be taken away. Each of them is then put up alone, and those that stop it alone are named.

use agentd_attacks::errno_name;
use agentd_attacks::suite::{Attack, Elsewhere};

use super::place::{Answer, Place};
use super::walls::Wall;
use super::{Attempted, Stop, Verdict};

/// Judges an attack by its `answer` in a box. `attempt` tries it at a place with the walls that are to stand.
pub(super) fn judge(
    attack: &Attack,
    answer: Result<Answer, String>,
    mut attempt: impl FnMut(Place, &[Wall]) -> Result<Answer, String>,
) -> Attempted {
    let mut judged = Attempted::new(attack.name, attack.says, Verdict::Unknown);
    judged.call = attack.call;
    let answer = match answer {
        Ok(answer) => answer,
        Err(reason) => {
            judged.reason = Some(reason);
            return judged;
        }
    };
    judged.answer = Some(words(answer));
    if worked(attack, answer) {
        judged.verdict = Verdict::Succeeded;
        return judged;
    }
    judged.verdict = Verdict::Stopped;
    let elsewhere = attack.elsewhere.map(|place| match place {
        Elsewhere::Namespaces => (Place::Namespaces, &[][..]),
        Elsewhere::HostProcesses => (Place::HostProcesses, &[][..]),
    });
    // Own files of the box are its user's, the host's are not: some attacks need the one, some the other.
    let open = [(Place::Box, &[Wall::OwnRoot][..]), (Place::Box, &[][..])];
    let mut nearest = None;
    for (place, base) in elsewhere.into_iter().chain(open) {
        // A place that this host does not offer shows nothing.
        let Ok(without) = attempt(place, base) else { continue };
        let works = worked(attack, without);
        if works {
            nearest = Some((place, base, without, works));
            break;
        }
        nearest.get_or_insert((place, base, without, works));
    }
    let Some((place, base, without, works)) = nearest else { return judged };
    (judged.without, judged.works_without) = (Some(words(without)), works);
    // Where it works nowhere the kernel itself refuses it, and a wall with another answer came before.
    if works || answer != without {
        let stops = |answer| if works { !worked(attack, answer) } else { answer != without };
        let candidates: Vec<Wall> = place.walls().iter().copied().filter(|wall| !base.contains(wall)).collect();
        judged.stopped_by =
            alone(&candidates, |walls| attempt(place, &[base, walls].concat()).ok().filter(|answer| stops(*answer)));
        // Of several layers the one that answered in the whole box is the one whose answer that is.
        let Attempted { stopped_by, answer, .. } = &mut judged;
        stopped_by.sort_by_key(|stop| Some(&stop.answer) != answer.as_ref());
    }
    judged
}

/// Those of `walls` that, put up alone, give an answer that `stops`. Walls only ever refuse more: where several together
/// stop nothing, none of them does.
fn alone(walls: &[Wall], mut stops: impl FnMut(&[Wall]) -> Option<Answer>) -> Vec<Stop> {
    let mut found = Vec::new();
    let mut left = walls;
    while let [wall, rest @ ..] = left {
        if let Some(answer) = stops(&[*wall]) {
            found.push(Stop { layer: *wall, answer: words(answer) });
        }
        left = if rest.len() > 1 && stops(rest).is_none() { &[] } else { rest };
    }
    found
}

fn worked(attack: &Attack, answer: Answer) -> bool {
    match answer {
        Answer::Worked => attack.worked(None),
        Answer::Errno(errno) => attack.worked(Some(errno)),
        Answer::Killed(_) => false,
    }
}

fn words(answer: Answer) -> String {
    match answer {
        Answer::Worked => "ok".into(),
        Answer::Errno(errno) => errno_name(errno),
        Answer::Killed(signal) => format!("killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_attacks::suite::{Targets, attacks};

    fn attack(name: &str) -> Attack {
        attacks(&Targets::default()).into_iter().find(|attack| attack.name == name).unwrap()
    }

    fn eperm(_place: Place, _standing: &[Wall]) -> Result<Answer, String> {
        Ok(Answer::Errno(libc::EPERM))
    }

    #[test]
    fn an_attack_that_works_in_a_box_is_a_success_and_nothing_else_is_tried() {
        let mut tries = 0;
        let judged = judge(&attack("unshare-user"), Ok(Answer::Worked), |_, _| {
            tries += 1;
            Ok(Answer::Worked)
        });
        assert_eq!((judged.verdict, tries), (Verdict::Succeeded, 0));
        // The same for an answer from behind the check.
        let judged = judge(&attack("kexec"), Ok(Answer::Errno(libc::EINVAL)), eperm);
        assert_eq!(judged.verdict, Verdict::Succeeded);
    }

    #[test]
    fn each_wall_that_stops_it_alone_is_named_and_no_other() {
        let judged = judge(&attack("unshare-user"), Ok(Answer::Killed(31)), |_, standing| {
            let stops = [Wall::Seccomp, Wall::Limits].into_iter().find(|wall| standing.contains(wall));
            Ok(match stops {
                Some(Wall::Seccomp) => Answer::Killed(31),
                Some(_) => Answer::Errno(libc::EAGAIN),
                None => Answer::Worked,
            })
        });
        let named: Vec<_> = judged.stopped_by.iter().map(|stop| (stop.layer, stop.answer.as_str())).collect();
        assert_eq!(named, [(Wall::Seccomp, "killed by signal 31"), (Wall::Limits, "EAGAIN")]);
        assert_eq!((judged.without.as_deref(), judged.works_without), (Some("ok"), true));
    }

    #[test]
    fn what_no_box_allows_is_tried_in_bare_namespaces() {
        let judged = judge(&attack("mount"), eperm(Place::Box, &[]), |place, standing| match place {
            Place::Namespaces if standing.is_empty() => Ok(Answer::Worked),
            _ => eperm(place, standing),
        });
        let layers: Vec<_> = judged.stopped_by.iter().map(|stop| stop.layer).collect();
        assert_eq!(layers, Place::Namespaces.walls());
    }

    #[test]
    fn a_layer_that_answers_before_the_kernel_is_named_too() {
        let judged = judge(&attack("shadow"), Ok(Answer::Errno(libc::ENOENT)), |_, standing| {
            Ok(Answer::Errno(if standing.contains(&Wall::OwnRoot) { libc::ENOENT } else { libc::EACCES }))
        });
        assert_eq!((judged.without.as_deref(), judged.works_without), (Some("ENOENT"), false));
        let judged = judge(&attack("shadow"), Ok(Answer::Errno(libc::EROFS)), |_, standing| {
            Ok(Answer::Errno(if standing.contains(&Wall::ReadOnly) { libc::EROFS } else { libc::EACCES }))
        });
        assert_eq!(judged.stopped_by, [Stop { layer: Wall::ReadOnly, answer: "EROFS".into() }]);
        assert_eq!(judged.to_string(), format!("{}: EROFS by read-only mounts; without layers EACCES", judged.says));
    }

    #[test]
    fn what_the_kernel_refuses_anyway_is_no_walls_merit() {
        let judged = judge(&attack("shadow"), eperm(Place::Box, &[]), eperm);
        assert_eq!(judged.verdict, Verdict::Stopped);
        assert_eq!(judged.stopped_by, []);
        assert_eq!((judged.without.as_deref(), judged.works_without), (Some("EPERM"), false));
    }

    #[test]
    fn an_attempt_that_could_not_be_made_is_not_called_stopped() {
        let judged = judge(&attack("mount"), Err("no namespaces".into()), eperm);
        assert_eq!(judged.verdict, Verdict::Unknown);
        assert_eq!(judged.reason.as_deref(), Some("no namespaces"));
    }
}
