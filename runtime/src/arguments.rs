//! The command line: every command and flag is an entry of a table, from which parsing, help and
//! suggestions come.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::str::FromStr;

use qwen2c_format::Diagnostic;

use crate::flags::{COMMANDS, FLAGS, Flag};

/// What the program is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Run,
    Chat,
    Logits,
    Perplexity,
    Bench,
    Profile,
    SelfTest,
    Info,
}

/// A parsed command line. Values are still texts; [`Arguments::number`] and its like read them.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    /// None where no command was named.
    pub(crate) command: Option<Command>,
    values: Vec<(&'static str, OsString)>,
    positional: Option<OsString>,
}

impl Arguments {
    /// Parses what stands behind the program's name.
    ///
    /// # Errors
    ///
    /// A usage error: unknown names, missing values.
    pub(crate) fn parse(arguments: &[OsString]) -> Result<Self, Diagnostic> {
        let mut parsed = Self { command: find_command(arguments)?, ..Self::default() };
        // Without a command, flags are those of `run`.
        let command = parsed.command.unwrap_or(Command::Run);
        let mut rest = arguments.iter();
        let mut command_passed = parsed.command.is_none();
        while let Some(argument) = rest.next() {
            if !is_flag(argument) {
                if !command_passed {
                    command_passed = true;
                } else {
                    parsed.add_positional(command, argument)?;
                }
                continue;
            }
            let (name, attached) = split_value(argument);
            let flag = find_flag(command, &name)?;
            let value = match (flag.value, attached) {
                (None, None) => OsString::new(),
                (None, Some(_)) => return Err(usage(command, format!("`{name}` takes no value"))),
                (Some(_), Some(value)) => value,
                (Some(value), None) => rest
                    .next()
                    .cloned()
                    .ok_or_else(|| usage(command, format!("`{name}` needs a value: `{name} {value}`")))?,
            };
            parsed.values.push((flag.name, value));
        }
        Ok(parsed)
    }

    fn add_positional(&mut self, command: Command, argument: &OsStr) -> Result<(), Diagnostic> {
        if command.entry().positional.is_none() || self.positional.is_some() {
            let shown = argument.to_string_lossy();
            return Err(usage(command, format!("`{shown}` was not expected")));
        }
        self.positional = Some(argument.to_owned());
        Ok(())
    }

    /// The command that errors and help refer to.
    fn named_command(&self) -> Command {
        self.command.unwrap_or(Command::Run)
    }

    /// Whether nothing but flags of every command were given.
    pub(crate) fn only_common_flags(&self) -> bool {
        let common = |name: &str| FLAGS.iter().any(|flag| flag.name == name && flag.commands.is_empty());
        self.values.iter().all(|(name, _)| common(name))
    }

    /// Whether the flag was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(given, _)| *given == name)
    }

    /// The flag's value as it was given; the last one counts.
    pub(crate) fn value(&self, name: &str) -> Option<&OsStr> {
        self.values.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value.as_os_str())
    }

    /// What stands beside the flags: the file of `perplexity`.
    pub(crate) fn positional(&self) -> Option<&OsStr> {
        self.positional.as_deref()
    }

    /// The flag's value as text.
    ///
    /// # Errors
    ///
    /// A usage error where it is not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Diagnostic> {
        self.value(name).map(|value| self.as_text(name, value)).transpose()
    }

    /// All values of a flag that may be repeated.
    ///
    /// # Errors
    ///
    /// As [`Arguments::text`].
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, Diagnostic> {
        let given = self.values.iter().filter(|(given, _)| *given == name);
        given.map(|(_, value)| self.as_text(name, value).map(str::to_owned)).collect()
    }

    fn as_text<'a>(&self, name: &str, value: &'a OsStr) -> Result<&'a str, Diagnostic> {
        value.to_str().ok_or_else(|| {
            usage(self.named_command(), format!("the value of `{name}` is not UTF-8"))
                .found(value.to_string_lossy())
        })
    }

    /// The flag's value as a number between `least` and `most`.
    ///
    /// # Errors
    ///
    /// A usage error where it is none or outside.
    pub(crate) fn number<T>(&self, name: &str, least: T, most: T) -> Result<Option<T>, Diagnostic>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse::<T>() {
            Ok(number) if number >= least && number <= most => Ok(Some(number)),
            _ => Err(usage(self.named_command(), format!("`{name}` does not take `{text}`"))
                .needed(format!("a number from {least} to {most}"))),
        }
    }

    /// Two flags that exclude one another.
    ///
    /// # Errors
    ///
    /// A usage error where both were given.
    pub(crate) fn exclude(&self, one: &str, other: &str) -> Result<(), Diagnostic> {
        if self.has(one) && self.has(other) {
            return Err(usage(self.named_command(), format!("`{one}` and `{other}` exclude one another")));
        }
        Ok(())
    }

    /// A usage error of the command at hand.
    pub(crate) fn usage(&self, title: impl Into<String>) -> Diagnostic {
        usage(self.named_command(), title)
    }
}

fn usage(command: Command, title: impl Into<String>) -> Diagnostic {
    let name = command.entry().name;
    Diagnostic::new(title).help(format!("`{name} --help` lists what it takes"))
}

/// A lone dash is a value, not a flag.
fn is_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    bytes.len() > 1 && bytes[0] == b'-'
}

/// Splits `--name=value`; short flags have no such form.
fn split_value(argument: &OsStr) -> (String, Option<OsString>) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = argument.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=').filter(|_| bytes.starts_with(b"--")) {
        Some(at) => {
            let name = String::from_utf8_lossy(&bytes[..at]).into_owned();
            (name, Some(OsString::from_vec(bytes[at + 1..].to_vec())))
        }
        None => (argument.to_string_lossy().into_owned(), None),
    }
}

/// The command is the first argument that is neither a flag of every command nor its value.
fn find_command(arguments: &[OsString]) -> Result<Option<Command>, Diagnostic> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if !is_flag(argument) {
            let name = argument.to_string_lossy();
            if let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) {
                return Ok(Some(entry.command));
            }
            let error = Diagnostic::new(format!("there is no command `{name}`"));
            let error = match suggestion(&name, COMMANDS.iter().map(|entry| entry.name)) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error,
            };
            return Err(error.help("`--help` lists the commands"));
        }
        let (name, attached) = split_value(argument);
        match FLAGS.iter().find(|flag| flag.name == name && flag.commands.is_empty()) {
            Some(flag) if flag.value.is_some() && attached.is_none() => drop(rest.next()),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn find_flag(command: Command, name: &str) -> Result<&'static Flag, Diagnostic> {
    let known = |flag: &&Flag| flag.commands.is_empty() || flag.commands.contains(&command);
    if let Some(flag) = FLAGS.iter().filter(known).find(|flag| flag.name == name) {
        return Ok(flag);
    }
    let error = Diagnostic::new(format!("`{}` does not take `{name}`", command.entry().name));
    let names = FLAGS.iter().filter(known).filter(|flag| !flag.hidden).map(|flag| flag.name);
    let error = match suggestion(name, names) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error,
    };
    Err(error.help(format!("`{} --help` lists what it takes", command.entry().name)))
}

/// The nearest of some names, if it is near: at most a third of the letters differ.
fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = names.map(|other| (edit_distance(name, other), other)).min()?;
    (nearest.0 <= name.chars().count().div_ceil(3)).then_some(nearest.1)
}

/// Letters to change, add or drop between two words (Levenshtein 1966).
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (index, &candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != candidate);
            diagonal = row[index + 1];
            row[index + 1] = changed.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[other.len()]
}

/// The help of the program, or of one command.
pub(crate) fn help(program: &str, command: Option<Command>) -> String {
    let mut text = String::new();
    match command {
        None => {
            let _ = writeln!(text, "usage: {program} [COMMAND] [FLAGS]\n");
            let _ =
                writeln!(text, "Without a command: chat on a terminal; otherwise answers standard input.\n");
            let _ = writeln!(text, "commands:");
            for entry in COMMANDS {
                let _ = writeln!(text, "  {:<12} {}", entry.name, entry.summary);
            }
        }
        Some(command) => {
            let entry = command.entry();
            let positional = entry.positional.map_or(String::new(), |name| format!(" {name}"));
            let _ =
                writeln!(text, "usage: {program} {}{positional} [FLAGS]\n\n{}\n", entry.name, entry.summary);
            let _ = writeln!(text, "flags:");
            write_flags(&mut text, |flag| flag.commands.contains(&command));
        }
    }
    let _ = writeln!(text, "\nflags of every command:");
    write_flags(&mut text, |flag| flag.commands.is_empty());
    text
}

fn write_flags(text: &mut String, shown: impl Fn(&Flag) -> bool) {
    for flag in FLAGS.iter().filter(|flag| shown(flag) && !flag.hidden) {
        let name = match flag.value {
            Some(value) => format!("{} {value}", flag.name),
            None => flag.name.to_owned(),
        };
        let _ = writeln!(text, "  {name:<26} {}", flag.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Diagnostic> {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Arguments::parse(&arguments)
    }

    #[test]
    fn commands_and_values_are_read() {
        let arguments =
            parse("--threads 2 run -p hello --top-p=0.5 --stop a --stop b -n 7").expect("is right");
        assert_eq!(arguments.command, Some(Command::Run));
        assert_eq!(arguments.text("-p"), Ok(Some("hello")));
        assert_eq!(arguments.number("--top-p", 0.0, 1.0), Ok(Some(0.5)));
        assert_eq!(arguments.number("--threads", 1, 9), Ok(Some(2)));
        assert_eq!(arguments.texts("--stop"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(!arguments.only_common_flags());
        assert_eq!(
            parse("perplexity text.txt").expect("is right").positional(),
            Some(OsStr::new("text.txt"))
        );
    }

    #[test]
    fn values_may_look_like_flags() {
        let arguments = parse("run -p --help").expect("is right");
        assert_eq!(arguments.text("-p"), Ok(Some("--help")));
        assert!(!arguments.has("--help"));
        assert_eq!(parse("run --tokens -1").expect("is right").text("--tokens"), Ok(Some("-1")));
    }

    #[test]
    fn no_command_takes_the_flags_of_run() {
        let arguments = parse("--quiet").expect("is right");
        assert!(arguments.command.is_none() && arguments.only_common_flags());
        let arguments = parse("-p hi").expect("is right");
        assert!(arguments.command.is_none() && !arguments.only_common_flags());
    }

    #[test]
    fn mistakes_are_named_with_what_is_near() {
        let help_of = |line: &str| parse(line).expect_err("is wrong").to_string();
        assert!(help_of("bnech").contains("did you mean `bench`?"), "{}", help_of("bnech"));
        assert!(help_of("run --temprature 1").contains("did you mean `--temperature`?"));
        assert!(help_of("run -n").contains("needs a value"));
        assert!(help_of("run --raw=1").contains("takes no value"));
        assert!(help_of("run more").contains("`more` was not expected"));
        assert!(help_of("bench --temperature 1").contains("`bench` does not take"));
        assert!(help_of("perplexity a b").contains("`b` was not expected"));
        let outside = parse("run -n x").expect("parses").number::<u32>("-n", 0, 9);
        assert!(outside.expect_err("is wrong").to_string().contains("a number from 0 to 9"));
    }

    #[test]
    fn help_shows_every_flag_that_is_not_hidden() {
        let all = help("program", None);
        assert!(COMMANDS.iter().all(|entry| all.contains(entry.name)));
        for flag in FLAGS {
            for &command in flag.commands {
                assert_eq!(help("program", Some(command)).contains(flag.name), !flag.hidden, "{}", flag.name);
            }
        }
    }
}
