//! What the kernel's command line asks for.

/// A workload and its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The workload's name.
    pub(crate) name: String,
    /// What follows its first comma.
    pub(crate) argument: Option<String>,
}

impl Request {
    /// The last `workload=NAME[,ARGUMENT]` of a command line; `cpuinfo` where there is none.
    pub(crate) fn from_command_line(line: &str) -> Self {
        let value = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("workload="))
            .next_back()
            .unwrap_or("cpuinfo");
        match value.split_once(',') {
            Some((name, argument)) => {
                Self { name: name.to_owned(), argument: Some(argument.to_owned()) }
            }
            None => Self { name: value.to_owned(), argument: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> (String, Option<String>) {
        let request = Request::from_command_line(line);
        (request.name, request.argument)
    }

    #[test]
    fn the_last_request_counts() {
        assert_eq!(request("quiet workload=mte workload=idle x=1"), ("idle".into(), None));
    }

    #[test]
    fn an_argument_follows_the_first_comma() {
        assert_eq!(request("workload=touch,64,a"), ("touch".into(), Some("64,a".into())));
        assert_eq!(request("workload=touch,"), ("touch".into(), Some(String::new())));
    }

    #[test]
    fn without_a_request_the_machine_is_described() {
        assert_eq!(request("quiet myworkload=x"), ("cpuinfo".into(), None));
        assert_eq!(request(""), ("cpuinfo".into(), None));
    }
}
