//! Users and groups by name, from the files that hold them. A machine that asks a directory service instead still has
//! the numbers.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;

use super::stream::Owner;

const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Names {
    users: Table,
    groups: Table,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u32, String>,
    by_name: HashMap<String, u32>,
}

impl Names {
    pub(super) fn of_this_machine() -> Self {
        Self {
            users: Table::parse(&text("/etc/passwd")),
            groups: Table::parse(&text("/etc/group")),
        }
    }

    pub(super) fn user(&self, id: u32) -> Owner {
        self.users.owner(id)
    }

    pub(super) fn group(&self, id: u32) -> Owner {
        self.groups.owner(id)
    }

    /// The number that `owner` has here: of its name where that exists, as `tar` does.
    pub(super) fn user_id(&self, owner: &Owner) -> u32 {
        self.users.id(owner)
    }

    pub(super) fn group_id(&self, owner: &Owner) -> u32 {
        self.groups.id(owner)
    }
}

impl Table {
    /// Lines of `name:password:number:...`; the first of two equal names or numbers holds.
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(id)) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok())) else {
                continue;
            };
            table.by_id.entry(id).or_insert_with(|| name.to_owned());
            table.by_name.entry(name.to_owned()).or_insert(id);
        }
        table
    }

    fn owner(&self, id: u32) -> Owner {
        Owner {
            id,
            name: self.by_id.get(&id).cloned(),
        }
    }

    fn id(&self, owner: &Owner) -> u32 {
        let here = owner.name.as_ref().and_then(|name| self.by_name.get(name));
        here.copied().unwrap_or(owner.id)
    }
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outweighs_a_number() {
        let table = Table::parse("root:x:0:0:root:/:/bin/sh\nshop:x:1001:1001::/:/bin/sh\nbroken\n");
        assert_eq!(table.owner(1001).name.as_deref(), Some("shop"));
        let moved = Owner {
            id: 500,
            name: Some("shop".to_owned()),
        };
        assert_eq!(table.id(&moved), 1001);
        let unknown = Owner {
            id: 500,
            name: Some("nobody here".to_owned()),
        };
        assert_eq!(table.id(&unknown), 500);
    }
}
