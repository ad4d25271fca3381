//! passwd and group text → users and groups.
//!
//! Our own reading of passwd(5) and group(5): a static binary must not let libc load
//! name-service modules, and `su` is not there in a scratch image. Lines that do not parse
//! are passed over, as libc does.

use crate::config::Identity;

/// One line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

/// The first account with that name or number.
pub fn find_user(passwd: &str, who: &Identity) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _full_name = fields.next()?;
        let home = fields.next()?;
        let shell = fields.next().unwrap_or("");
        let same = match who {
            Identity::Name(wanted) => wanted == name,
            Identity::Id(wanted) => *wanted == uid,
        };
        same.then(|| Account {
            name: name.to_owned(),
            uid,
            gid,
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    })
}

/// The gid of a group by name. A number is itself, listed or not.
pub fn find_group(group: &str, who: &Identity) -> Option<u32> {
    match who {
        Identity::Id(gid) => Some(*gid),
        Identity::Name(wanted) => groups(group)
            .find(|(name, _, _)| name == wanted)
            .map(|(_, gid, _)| gid),
    }
}

/// What initgroups(3) would set: `primary`, then every group that lists the user.
pub fn groups_of(group: &str, user: &str, primary: u32) -> Vec<u32> {
    let mut found = vec![primary];
    for (_, gid, members) in groups(group) {
        if members.split(',').any(|member| member == user) && !found.contains(&gid) {
            found.push(gid);
        }
    }
    found
}

/// Name, gid and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\narcher:x:1000:1000:,,,:/home/archer:/bin/sh\n\
                          bare:x:7:8::/nowhere\n";
    const GROUP: &str =
        "root:x:0:\nvideo:x:44:archer,other\narcher:x:1000:\ni2c:x:108:other,archer\nx:y\n";

    #[test]
    fn users_by_name_and_number() {
        let archer = find_user(PASSWD, &Identity::Name("archer".into())).expect("listed");
        assert_eq!(
            (archer.uid, archer.gid, archer.home.as_str()),
            (1000, 1000, "/home/archer")
        );
        assert_eq!(find_user(PASSWD, &Identity::Id(1000)), Some(archer));
        assert_eq!(find_user(PASSWD, &Identity::Id(4711)), None);
        let bare = find_user(PASSWD, &Identity::Name("bare".into())).expect("no shell field");
        assert_eq!(bare.shell, "");
    }

    #[test]
    fn groups_by_name_number_and_member() {
        assert_eq!(find_group(GROUP, &Identity::Name("video".into())), Some(44));
        assert_eq!(find_group(GROUP, &Identity::Id(4711)), Some(4711));
        assert_eq!(find_group(GROUP, &Identity::Name("none".into())), None);
        assert_eq!(groups_of(GROUP, "archer", 1000), [1000, 44, 108]);
        assert_eq!(groups_of(GROUP, "nobody", 5), [5]);
    }
}
