//! The guest's users, from /etc/passwd and /etc/group: the files that a static program can read.

use std::path::PathBuf;

use rustix::process::{Gid, Uid, getegid, geteuid};

use crate::sys::child::Identity;

/// The longest file of users that is read.
const MAX_FILE: usize = 16 << 20;
/// More groups than a process can have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// A user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// The files of users.
#[derive(Debug, Default)]
pub(crate) struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// As they are now; what is missing or too large is empty.
    pub(crate) fn read() -> Self {
        let text = |path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            let bytes = bytes.get(..bytes.len().min(MAX_FILE)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        Self { passwd: text("/etc/passwd"), group: text("/etc/group") }
    }

    /// The user of this process.
    pub(crate) fn own(&self) -> User {
        let (user, group) = (geteuid(), getegid());
        self.line(|_, number| number == user.as_raw())
            .and_then(|line| self.user(line))
            .unwrap_or_else(|| nameless(user, group))
    }

    /// The user of this name or number. A number needs no entry: its group is the same number.
    pub(crate) fn find(&self, name: &str) -> Option<User> {
        if let Some(line) = self.line(|known, _| known == name) {
            return self.user(line);
        }
        let number: u32 = name.parse().ok().filter(|number| *number != u32::MAX)?;
        match self.line(|_, known| known == number) {
            Some(line) => self.user(line),
            None => Some(nameless(Uid::from_raw(number), Gid::from_raw(number))),
        }
    }

    fn line(&self, wanted: impl Fn(&str, u32) -> bool) -> Option<&str> {
        self.passwd.lines().find(|line| {
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let number = fields.nth(1).and_then(|number| number.parse().ok());
            !name.is_empty() && number.is_some_and(|number| wanted(name, number))
        })
    }

    /// A line `name:password:uid:gid:comment:home:shell` (passwd(5)).
    fn user(&self, line: &str) -> Option<User> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, user, group, _, home, shell] = fields[..] else { return None };
        let group: u32 = group.parse().ok()?;
        let or = |text: &str, default| PathBuf::from(if text.is_empty() { default } else { text });
        Some(User {
            name: name.to_owned(),
            identity: Identity {
                user: Uid::from_raw(user.parse().ok()?),
                group: Gid::from_raw(group),
                groups: self.groups(name, group),
            },
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    }

    /// The groups that have the user as a member, lines `name:password:gid:members` (group(5)), and its own.
    fn groups(&self, name: &str, own: u32) -> Vec<Gid> {
        let others = self.group.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let number: u32 = fields.next()?.parse().ok()?;
            let member = fields.next()?.split(',').any(|member| member == name);
            (member && number != own).then_some(number)
        });
        std::iter::once(own).chain(others).take(MAX_GROUPS).map(Gid::from_raw).collect()
    }
}

fn nameless(user: Uid, group: Gid) -> User {
    User {
        name: if user.is_root() { "root".to_owned() } else { user.as_raw().to_string() },
        identity: Identity { user, group, groups: vec![group] },
        home: PathBuf::from("/"),
        shell: PathBuf::from("/bin/sh"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn users() -> Users {
        Users {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbad:x:many:0:::\nshort:x:7\n\
                     ann:x:1000:1000:Ann,,,:/home/ann:\n"
                .into(),
            group: "root:x:0:\nadm:x:4:bob,ann\nann:x:1000:ann\nhalf:x:9\nnear:x:5:annie\n".into(),
        }
    }

    #[test]
    fn a_user_has_its_groups_home_and_shell() {
        let ann = users().find("ann").unwrap();

        assert_eq!(ann.identity.groups, [1000, 4].map(Gid::from_raw));
        assert_eq!((ann.home, ann.shell), ("/home/ann".into(), "/bin/sh".into()));
        assert_eq!(users().find("1000").unwrap().name, "ann");
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_does() {
        let user = users().find("4242").unwrap();

        assert_eq!((user.identity.user.as_raw(), user.identity.group.as_raw()), (4242, 4242));
        assert_eq!(user.identity.groups, [Gid::from_raw(4242)]);
        for name in ["eve", "bad", "short", "", "-1", "4294967295", "an"] {
            assert_eq!(users().find(name), None, "{name}");
        }
    }

    #[test]
    fn without_files_there_is_the_own_user() {
        let own = Users::default().own();

        assert_eq!(own.identity.user, geteuid());
        assert_eq!(own.home, PathBuf::from("/"));
    }
}
