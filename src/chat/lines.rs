//! Owns what a line means that somebody types, and how texts of strangers are shown. Pure.

use uuid::Uuid;

/// What is asked for by a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing.
    Empty,
    /// Say this, to whoever is named or else to whom the rest goes.
    Say(Option<Uuid>, String),
    /// From now on, what is said goes to them.
    To(Uuid),
    Me,
    Help,
    Quit,
    /// It can't be understood: why.
    Wrong(String),
}

/// What a terminal is told by /help.
pub(super) const HELP: &str = "\
* ID TEXT   says TEXT to ID
* /to ID    from now on, what you type goes to ID
* /me       shows your own id
* /quit     ends (so does Ctrl-D)
* //TEXT    says /TEXT";

/// Reads a line.
pub(super) fn read(line: &str) -> Line {
    let line = line.trim_end_matches(['\r', '\n']);
    let words = line.trim();
    if words.is_empty() {
        return Line::Empty;
    }
    if let Some(text) = words.strip_prefix("//") {
        return Line::Say(None, format!("/{text}"));
    }
    let (first, rest) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
    match first {
        "/to" => match id(rest.trim()) {
            Some(id) => Line::To(id),
            None => Line::Wrong("/to wants an id, as the other one's terminal shows it".to_owned()),
        },
        "/me" => Line::Me,
        "/help" => Line::Help,
        "/quit" => Line::Quit,
        _ if first.starts_with('/') => Line::Wrong(format!("{first} is no command: /help shows them")),
        _ => match (id(first), rest.trim_start()) {
            (Some(id), "") => Line::To(id),
            (Some(id), text) => Line::Say(Some(id), text.to_owned()),
            (None, _) => Line::Say(None, line.to_owned()),
        },
    }
}

/// An id as it is shown, with its hyphens: a number that somebody says is none.
fn id(word: &str) -> Option<Uuid> {
    (word.len() == 36).then(|| Uuid::try_parse(word).ok()).flatten()
}

/// How somebody is called.
pub(super) fn name(id: Uuid) -> String {
    id.to_string().chars().take(8).collect()
}

/// A text as a terminal may have it: a stranger moves no cursor, rings no bell, and turns no writing round.
pub(super) fn tame(text: &str) -> String {
    let is_wild = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    text.chars().map(|c| if is_wild(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1B4E28BA-2fa1-4d2b-883f-0016d3cca427";

    #[test]
    fn lines_mean_what_help_says() {
        let id = Uuid::try_parse(ID).unwrap();
        let say = |to, text: &str| Line::Say(to, text.to_owned());
        let meanings = [
            (String::new(), Line::Empty),
            (" \t\r\n".to_owned(), Line::Empty),
            ("  hello, you \n".to_owned(), say(None, "  hello, you ")),
            (format!("{ID} hello, you"), say(Some(id), "hello, you")),
            (format!("/to {ID}\n"), Line::To(id)),
            (ID.to_owned(), Line::To(id)),
            ("//to be or not".to_owned(), say(None, "/to be or not")),
            (
                "12345678123456781234567812345678 is a number".to_owned(),
                say(None, "12345678123456781234567812345678 is a number"),
            ),
            ("/me".to_owned(), Line::Me),
            ("/help".to_owned(), Line::Help),
            ("/quit".to_owned(), Line::Quit),
        ];
        for (line, meaning) in meanings {
            assert_eq!(read(&line), meaning, "{line:?}");
        }
        for line in ["/to", "/to nobody", "/nonsense"] {
            assert!(matches!(read(line), Line::Wrong(_)), "{line}");
        }
    }

    #[test]
    fn strangers_do_nothing_to_the_terminal() {
        assert_eq!(tame("a\u{1b}]0;x\u{7}\nb\u{202e}c\tü🙂"), "a\u{fffd}]0;x\u{fffd}\u{fffd}b\u{fffd}c\tü🙂");
    }
}
