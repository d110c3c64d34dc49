//! Owns findings and verdicts: what a check says, as lines for people and as JSON, and its exit code. **Pure.**

use std::fmt::{self, Display};

use serde::Serialize;

/// What a finding comes to. What is listed later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Well,
    /// It can't be seen from here, or with these rights: nothing is said against it.
    Unseen,
    /// It works, but not as well, or not as long, as it could.
    Doubtful,
    /// It does not work, or will not when it is needed.
    Wrong,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Unseen => "not seen",
            Self::Doubtful => "doubtful",
            Self::Wrong => "WRONG",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it comes to.
    pub verdict: Verdict,
    /// What was looked at, for machines: `redis.maxclients`.
    pub name: &'static str,
    /// Where: `Redis 10.0.0.1:6379`.
    pub place: String,
    /// What was found there.
    pub found: String,
    /// Why that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The line to change, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn well(&mut self, name: &'static str, place: impl Display, found: impl Into<String>) {
        let (place, found) = (place.to_string(), found.into());
        self.0.push(Finding { verdict: Verdict::Well, name, place, found, why: None, change: None });
    }

    /// `change` is what would make it visible.
    pub(super) fn unseen(
        &mut self,
        name: &'static str,
        place: impl Display,
        found: impl Into<String>,
        change: impl Into<String>,
    ) {
        let (place, found, change) = (place.to_string(), found.into(), Some(change.into()));
        self.0.push(Finding { verdict: Verdict::Unseen, name, place, found, why: None, change });
    }

    pub(super) fn doubtful(
        &mut self,
        name: &'static str,
        place: impl Display,
        found: impl Into<String>,
        why: impl Into<String>,
        change: impl Into<String>,
    ) {
        self.flaw(Verdict::Doubtful, name, place, found, why, change);
    }

    pub(super) fn wrong(
        &mut self,
        name: &'static str,
        place: impl Display,
        found: impl Into<String>,
        why: impl Into<String>,
        change: impl Into<String>,
    ) {
        self.flaw(Verdict::Wrong, name, place, found, why, change);
    }

    fn flaw(
        &mut self,
        verdict: Verdict,
        name: &'static str,
        place: impl Display,
        found: impl Into<String>,
        why: impl Into<String>,
        change: impl Into<String>,
    ) {
        let (why, change) = (Some(why.into()), Some(change.into()));
        self.0.push(Finding { verdict, name, place: place.to_string(), found: found.into(), why, change });
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// 0 when all is well as far as it can be seen, 1 when something is doubtful, 2 when something is wrong.
    pub fn exit_code(&self) -> u8 {
        match self.worst() {
            Verdict::Well | Verdict::Unseen => 0,
            Verdict::Doubtful => 1,
            Verdict::Wrong => 2,
        }
    }

    fn worst(&self) -> Verdict {
        self.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Well)
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// For machines: the worst verdict, how many there are of each, and the findings.
    pub fn json(&self) -> String {
        let mut worst = self.worst();
        if worst == Verdict::Unseen {
            worst = Verdict::Well;
        }
        serde_json::json!({
            "verdict": worst,
            "wrong": self.count(Verdict::Wrong),
            "doubtful": self.count(Verdict::Doubtful),
            "unseen": self.count(Verdict::Unseen),
            "well": self.count(Verdict::Well),
            "findings": self.sorted(),
        })
        .to_string()
    }

    /// The worst first, otherwise in the order in which things were looked at.
    fn sorted(&self) -> Vec<&Finding> {
        let mut sorted: Vec<_> = self.iter().collect();
        sorted.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        sorted
    }
}

/// For people.
impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.sorted() {
            let Finding { verdict, name, place, found, why, change } = finding;
            writeln!(f, "{:<9} {}  ({name})", verdict.word(), printable(&format!("{place}: {found}")))?;
            for (word, text) in [("why", why), ("change", change)] {
                if let Some(text) = text {
                    writeln!(f, "          {word:<7} {}", printable(text))?;
                }
            }
        }
        let [wrong, doubtful, unseen, well] =
            [Verdict::Wrong, Verdict::Doubtful, Verdict::Unseen, Verdict::Well].map(|verdict| self.count(verdict));
        write!(f, "{wrong} wrong, {doubtful} doubtful, {unseen} not seen, {well} well")
    }
}

/// What servers say is shown on somebody's terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_is_the_exit_code_and_comes_first() {
        let mut findings = Findings::default();
        assert_eq!(findings.exit_code(), 0);
        findings.well("a.well", "here", "fine");
        findings.unseen("a.unseen", "here", "forbidden", "give the right");
        assert_eq!(findings.exit_code(), 0, "what can't be seen is not held against anybody");
        assert!(findings.json().contains(r#""verdict":"well""#));
        findings.doubtful("a.doubt", "here", "slow", "it is slow", "hurry");
        assert_eq!(findings.exit_code(), 1);
        findings.wrong("a.wrong", "there", "dead\x1b[2J", "it is dead", "mend it");
        assert_eq!(findings.exit_code(), 2);
        let text = findings.to_string();
        assert!(text.starts_with("WRONG     there: dead [2J  (a.wrong)\n          why     it is dead\n"), "{text}");
        assert!(text.ends_with("1 wrong, 1 doubtful, 1 not seen, 1 well"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&findings.json()).unwrap();
        assert_eq!(json["findings"][0]["verdict"], "wrong");
        assert_eq!(json["findings"][0]["change"], "mend it");
    }
}
