// SPDX-License-Identifier: Apache-2.0
//! Every key of the configuration, described: the source of the reference (`docs/config.md`).
//!
//! A key is read in [`super`], which owns what a value means and what is refused; here is what a person is told of it.
//!
//! Always holds: what the file may have is here, in the order of its structure, and nothing else; a test compares the two.

/// A key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What it takes.
    pub takes: &'static str,
    /// What is in force without it.
    pub default: &'static str,
    /// A value as it stands in a file.
    pub example: &'static str,
    /// The flag of `varve up` that goes before it, if there is one.
    pub flag: Option<&'static str>,
    /// What it does.
    pub about: &'static str,
}

/// Every key, in the order of [`super::FileConfig`].
pub const KEYS: &[Key] = &[
    Key {
        name: "data",
        example: r#""/var/lib/varve""#,
        takes: "path",
        default: "./varve-data",
        flag: Some("--data"),
        about: "The data directory: journal, coordination, the sockets `nbd.sock` and `api.sock`, the API's `token`, and the \
                store unless another is given. One server at a time.",
    },
    Key {
        name: "store",
        example: r#""s3://disks/pool1?endpoint=http://127.0.0.1:8333""#,
        takes: "URL",
        default: "`store` in the data directory",
        flag: Some("--store"),
        about: "The store of the pool `default`: `file:///DIR` or `s3://BUCKET/PREFIX?endpoint=URL`.",
    },
    Key {
        name: "volumes",
        example: r#"["disk1:10G", "disk2:1T"]"#,
        takes: "list of `NAME:SIZE`",
        default: "none",
        flag: Some("--volume"),
        about: "Volumes to be there, in the pool `default`; made at the start when they are not.",
    },
    Key {
        name: "nbd-listen",
        example: r#""127.0.0.1:10809""#,
        takes: "`ADDRESS:PORT` or `none`",
        default: "none",
        flag: Some("--nbd-listen"),
        about: "Where NBD listens beside its socket. Whoever reaches this port reads and writes every volume.",
    },
    Key {
        name: "edge-listen",
        example: r#""10.0.0.1:7421""#,
        takes: "`ADDRESS:PORT` or `none`",
        default: "none",
        flag: Some("--edge-listen"),
        about: "Where edges (`varve-edge`) connect beside the socket `edge.sock`. They prove themselves by the token in the file `edge-token` of the data directory, which is the same on all nodes of a cluster.",
    },
    Key {
        name: "edge-tls-cert",
        example: r#""/etc/varve/node.pem""#,
        takes: "path",
        default: "none: edges speak no TLS",
        flag: None,
        about: "The certificate that edges over TCP are shown, and those between it and an authority (PEM): they have to speak TLS then. This and the next two files are read anew, once a minute at most.",
    },
    Key {
        name: "edge-tls-key",
        example: r#""/etc/varve/node-key.pem""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The key of that certificate (PEM).",
    },
    Key {
        name: "edge-tls-client-ca",
        example: r#""/etc/varve/edge-ca.pem""#,
        takes: "path",
        default: "none: edges need no certificate",
        flag: None,
        about: "The authorities that edges over TCP have to have a certificate of (PEM), beside the token.",
    },
    Key {
        name: "api-listen",
        example: r#""127.0.0.1:7420""#,
        takes: "`ADDRESS:PORT` or `none`",
        default: "127.0.0.1:7420",
        flag: Some("--api-listen"),
        about: "Where the API listens beside its socket; a loopback address. Requests there need the token.",
    },
    Key {
        name: "etcd",
        example: r#"["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]"#,
        takes: "list of `http://HOST:PORT` or `https://HOST:PORT`",
        default: "none: coordination is in the data directory",
        flag: Some("--etcd"),
        about: "The members of the etcd that keeps the cluster's coordination: the node is one of a cluster then, which `varve cluster init` has made, and \
                its pools' stores are reached by all nodes.",
    },
    Key {
        name: "etcd-prefix",
        example: r#""/varve/""#,
        takes: "text",
        default: "/varve/",
        flag: Some("--etcd-prefix"),
        about: "What the cluster's keys in etcd begin with. Clusters that share an etcd have one each.",
    },
    Key {
        name: "etcd-ca",
        example: r#""/etc/varve/etcd-ca.pem""#,
        takes: "path",
        default: "what the system trusts",
        flag: None,
        about: "The authorities that etcd's certificates are signed by (PEM). This and the next four files are read anew whenever they are used.",
    },
    Key {
        name: "etcd-cert",
        example: r#""/etc/varve/etcd.pem""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The certificate to show to etcd (PEM), where it asks for one. Needs `etcd-key`.",
    },
    Key {
        name: "etcd-key",
        example: r#""/etc/varve/etcd-key.pem""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The key of that certificate (PEM).",
    },
    Key {
        name: "etcd-user",
        example: r#""varve""#,
        takes: "text",
        default: "none",
        flag: None,
        about: "The user, where etcd has authentication enabled. Needs `etcd-password-file`.",
    },
    Key {
        name: "etcd-password-file",
        example: r#""/etc/varve/etcd-password""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The file with that user's password on its first line.",
    },
    Key {
        name: "node-name",
        example: r#""node-1""#,
        takes: "name",
        default: "that of the host",
        flag: Some("--node-name"),
        about: "What the node is called. No two nodes of a cluster have one name. A node of a cluster keeps the name that it has joined with until this \
                says another.",
    },
    Key {
        name: "rack",
        example: r#""r1""#,
        takes: "text",
        default: "none",
        flag: None,
        about: "The rack that the node is in: what must not be lost at once is not kept in one rack.",
    },
    Key {
        name: "site",
        example: r#""s1""#,
        takes: "text",
        default: "none",
        flag: None,
        about: "The site that the node is at, likewise.",
    },
    Key {
        name: "edge-advertise",
        example: r#"["node-1.example:7421"]"#,
        takes: "list of `HOST:PORT`",
        default: "the address of `edge-listen`",
        flag: None,
        about: "Where edges reach this node: what other nodes tell edges that ask for one of its volumes. Has to be said where `edge-listen` is a wildcard.",
    },
    Key {
        name: "mirror-listen",
        example: r#""10.0.0.1:7423""#,
        takes: "`ADDRESS:PORT` or `none`",
        default: "none",
        flag: Some("--mirror-listen"),
        about: "Where other nodes of the cluster send copies of the tails of their volumes, which this one keeps in RAM, or in its journals, and takes over with. A volume's settings `mirror` and `mirror-medium` say whether it wants that, and where.",
    },
    Key {
        name: "mirror-advertise",
        example: r#""node-1.example:7423""#,
        takes: "`HOST:PORT`",
        default: "the address of `mirror-listen`",
        flag: None,
        about: "Where other nodes reach that. Has to be said where `mirror-listen` is a wildcard.",
    },
    Key {
        name: "node-tls-cert",
        example: r#""/etc/varve/node.pem""#,
        takes: "path",
        default: "none: nodes speak no TLS with each other",
        flag: None,
        about: "The certificate that this node shows to the other nodes of the cluster, whichever of the two connects, and those between it and an authority (PEM): it is for the host of `mirror-advertise`. All nodes have to speak TLS then. \
                This and the next two files are read anew, once a minute at most.",
    },
    Key {
        name: "node-tls-key",
        example: r#""/etc/varve/node-key.pem""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The key of that certificate (PEM).",
    },
    Key {
        name: "node-tls-ca",
        example: r#""/etc/varve/node-ca.pem""#,
        takes: "path",
        default: "none",
        flag: None,
        about: "The authorities that the other nodes have to have a certificate of (PEM), beside the cluster's own token.",
    },
    Key {
        name: "mirror-ram",
        example: r#""1G""#,
        takes: "size, up to 1T",
        default: "1G",
        flag: None,
        about: "RAM for such copies, at most; where there is no room for another one, volumes find another mirror. Copies in RAM and in journals together take a quarter of the journals at most.",
    },
    Key {
        name: "alive-ttl",
        example: r#""2s""#,
        takes: "duration, 1s to 10m",
        default: "2s",
        flag: None,
        about: "For how long the cluster takes the node for alive without news of it. It permits nothing and forbids nothing: a node that does not reach \
                etcd goes on serving.",
    },
    Key {
        name: "journal",
        example: r#"["/dev/nvme1n1", "/srv/journal:64G"]"#,
        takes: "list of PATH:SIZE (a file) or PATH (a block device)",
        default: "the file `journal/0` of the data directory",
        flag: None,
        about: "Where the journal is, or journals on a device each: a volume uses one of them, a new one that with the fewest volumes. The size is that of a file that is made; 64M to 1T.                 What is no journal of this node is refused. One that is left out is still opened until nothing needs it, which `varve status` tells; one that is missing keeps the node from starting.",
    },
    Key {
        name: "journal-size",
        example: r#""2G""#,
        takes: "size, 64M to 1T",
        default: "2G",
        flag: None,
        about: "Size of the journal in the data directory, preallocated at the first start; of a new one at most a quarter of the free space. It bounds how much can be written while the store is away.",
    },
    Key {
        name: "ram-cache",
        example: r#""256M""#,
        takes: "size, up to 1T",
        default: "256M",
        flag: None,
        about: "Bound of the read cache in RAM, for the whole node.",
    },
    Key {
        name: "cache",
        example: r#"["/dev/nvme2n1"]"#,
        takes: "list of PATH:SIZE (a file) or PATH (a block device)",
        default: "none",
        flag: None,
        about: "Devices of the read cache behind the one in RAM, which clones share and restarts keep. What is read from stores is written there; what else the device \
                holds is refused. Each takes RAM for 0.6 % of its size. One that fails costs speed and nothing else.",
    },
    Key {
        name: "map-ram",
        example: r#""1G""#,
        takes: "size, 16M to 1T",
        default: "1G",
        flag: None,
        about: "Bound of the RAM for what finds a block, for the whole node: nodes of maps, segment tables, places of chunks. Of maps what is used stays, the rest is read \
                from the store again. 1 TiB of random 4 KiB writes has a map of about 0.8 GiB.",
    },
    Key {
        name: "layer-ram",
        example: r#""512M""#,
        takes: "size, 16M to 1T",
        default: "512M",
        flag: None,
        about: "Bound of the RAM for what was written and is not in the store yet, for the whole node. At the bound, writers wait.",
    },
    Key {
        name: "clean-occupancy",
        example: "80",
        takes: "percent, 20 to 95, or `0`",
        default: "80",
        flag: None,
        about: "A volume is cleaned while less than so many of a hundred of its blocks in the store are alive: at 80 it costs at most a quarter more than \
                it holds, beside what snapshots keep. More costs more writing to the store; `0` turns cleaning off.",
    },
    Key {
        name: "clean-rate",
        example: r#""0""#,
        takes: "size a second, 64K to 1T, or `0`",
        default: "0: no bound",
        flag: None,
        about: "What cleaning may read from stores and put into them in a second. `varve clean --rate` changes it while the node runs.",
    },
    Key {
        name: "clean-lease",
        example: r#""2m""#,
        takes: "duration, 1s to 1h",
        default: "2m",
        flag: None,
        about: "How long a job of cleaning that was given to a `varve clean --worker` counts without news of it; then it is given up, and done by others. For as long \
                the node cleans nothing itself after it has heard of such a process.",
    },
    Key {
        name: "scrub-rate",
        example: r#""16M""#,
        takes: "size a second, 64K to 1T, or `0`",
        default: "16M",
        flag: None,
        about: "What scrubbing may read from stores in a second: it proves whatever the volumes of the node have there against its checksums, over and over, \
                and tells of damage. `0` turns it off. `varve scrub --rate` changes it while the node runs.",
    },
    Key {
        name: "scrub-interval",
        example: r#""7d""#,
        takes: "duration, 0s to 365d",
        default: "7d",
        flag: None,
        about: "For how long scrubbing rests between two passes.",
    },
    Key {
        name: "undelete-window",
        example: r#""1h""#,
        takes: "duration, 0s to 365d",
        default: "1h",
        flag: None,
        about: "For how long a deleted volume, or what a rollback hid, can be brought back: the setting that the pool `default` gets when it is \
                made. Afterwards `varve pool set` changes it.",
    },
    Key {
        name: "log-level",
        example: r#""info""#,
        takes: "`error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,varve_engine=debug`",
        default: "info",
        flag: None,
        about: "What is logged, to standard error.",
    },
    Key {
        name: "log-format",
        example: r#""text""#,
        takes: "`text` or `json`",
        default: "text",
        flag: None,
        about: "How it is logged.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileConfig;

    /// The structure refuses an unknown key by listing those that it knows.
    #[test]
    fn every_key_of_the_file_is_described_in_its_order() {
        let error = toml::from_str::<FileConfig>("no-such-key = 1").unwrap_err().to_string();
        let known = error.split("expected one of ").nth(1).unwrap();
        let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
        assert_eq!(known, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    }
}
