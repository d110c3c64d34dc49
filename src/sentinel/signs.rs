//! Owns what the events mean that a Sentinel publishes. Pure.
//!
//! A payload names its subject as `<kind> <name> <ip> <port>`, and where that is not a master, whose it is:
//! `@ <master's name> <ip> <port>`. (Redis documentation, "Sentinel: Pub/Sub messages".) A word that is equal to
//! the master's name proves nothing: it may be a host's name, or another master's.

/// The events that say that something is going on or over.
pub(super) const EVENTS: [&str; 13] = [
    "+switch-master",
    "+sdown",
    "-sdown",
    "+odown",
    "-odown",
    "+slave",
    "+sentinel",
    "+reboot",
    "+tilt",
    "-tilt",
    "+try-failover",
    "+promoted-slave",
    "+config-update-from",
];

/// What an event about our master means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Our master is being replaced, or is about to be.
    Failover,
    /// This Sentinel alone finds our master dead: it may be the Sentinel that is cut off.
    Suspicion,
    /// A Sentinel has come, or come back.
    Sentinel,
    /// Whatever else has changed in this Sentinel's view.
    Change,
}

/// Reads an event; `None` when it is about another master.
pub(super) fn read(event: &str, payload: &str, master_name: &str) -> Option<Sign> {
    let words: Vec<&str> = payload.split(' ').collect();
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    if matches!(event, "+tilt" | "-tilt") {
        return Some(Sign::Change); // It is about the Sentinel itself.
    }
    if event == "+switch-master" {
        return (word(0) == master_name).then_some(Sign::Failover);
    }
    let about_master = word(0) == "master";
    let master = if about_master { word(1) } else { word(5) };
    if master != master_name || (!about_master && word(4) != "@") {
        return None;
    }
    Some(match (event, word(0)) {
        ("+odown" | "+try-failover", "master") | ("+promoted-slave" | "+config-update-from", _) => Sign::Failover,
        ("+sdown", "master") => Sign::Suspicion,
        ("-sdown" | "+sentinel", "sentinel") => Sign::Sentinel,
        _ => Sign::Change,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_their_fields() {
        let ours = |event, payload| read(event, payload, "mymaster");
        // As Redis 7.0.15 wrote them.
        assert_eq!(ours("+sdown", "master mymaster 127.0.0.1 6379"), Some(Sign::Suspicion));
        assert_eq!(ours("+odown", "master mymaster 127.0.0.1 6379 #quorum 2/2"), Some(Sign::Failover));
        assert_eq!(ours("+switch-master", "mymaster 127.0.0.1 6379 127.0.0.1 6380"), Some(Sign::Failover));
        let replica = "slave 127.0.0.1:6380 127.0.0.1 6380 @ mymaster 127.0.0.1 6379";
        assert_eq!(ours("+promoted-slave", replica), Some(Sign::Failover));
        for event in ["+sdown", "-sdown", "+slave", "+reboot"] {
            assert_eq!(ours(event, replica), Some(Sign::Change), "{event}");
        }
        let sentinel = "sentinel 5f2c8a 127.0.0.1 26380 @ mymaster 127.0.0.1 6379";
        assert_eq!(ours("+config-update-from", sentinel), Some(Sign::Failover));
        assert_eq!(ours("+sdown", sentinel), Some(Sign::Change));
        assert_eq!(ours("-sdown", sentinel), Some(Sign::Sentinel));
        assert_eq!(ours("+tilt", "#tilt mode entered"), Some(Sign::Change));
    }

    #[test]
    fn a_word_that_equals_the_masters_name_is_not_our_master() {
        for (event, payload) in [
            ("+sdown", "master other mymaster 6379"),
            ("+odown", "master other mymaster 6379 #quorum 2/2"),
            ("+sdown", "slave mymaster:6380 mymaster 6380 @ other mymaster 6379"),
            ("+config-update-from", "sentinel 5f2c8a mymaster 26380 @ other 10.0.0.1 6379"),
            ("+switch-master", "other mymaster 6379 mymaster 6380"),
            ("+odown", "mymaster"),
            ("+sdown", ""),
        ] {
            assert_eq!(read(event, payload, "mymaster"), None, "{event} {payload}");
        }
    }
}
