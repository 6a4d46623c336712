//! Networks of their own for nodes, joined by a bridge that can be broken for some of them. Needs root,
//! `ip` and `iptables`.

use crate::power::run;

/// The ports of a node in a network of its own.
pub const HTTP_PORT: u16 = 7070;
/// The same, node to node.
pub const PEER_PORT: u16 = 7071;

/// What is dropped on its way to or from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The node.
    pub at: usize,
    /// Those that it is cut off from.
    pub others: Vec<usize>,
    /// Which ways.
    pub ways: Ways,
}

/// Which way packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Both.
    Both,
    /// What comes to the node.
    In,
    /// What it sends.
    Out,
}

/// Networks joined by a bridge; taken away when dropped. Names bear the process id, so that two runs
/// do not meet.
#[derive(Debug)]
pub struct Networks {
    names: Vec<String>,
    bridge: String,
    subnet: u8,
}

impl Networks {
    /// Makes `count` of them.
    ///
    /// # Errors
    /// If a command fails; root is needed.
    pub fn create(count: usize) -> anyhow::Result<Networks> {
        let id = std::process::id();
        let (bridge, subnet) = (format!("fb{id}"), (id % 200) as u8 + 20);
        let networks = Networks { names: (0..count).map(|at| format!("f{id}n{at}")).collect(), bridge, subnet };
        let bridge = networks.bridge.as_str();
        run("ip", &["link", "add", bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("10.77.{subnet}.1/24"), "dev", bridge])?;
        run("ip", &["link", "set", bridge, "up"])?;
        for (at, name) in networks.names.iter().enumerate() {
            let outside = networks.link(at);
            run("ip", &["netns", "add", name])?;
            run("ip", &["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", name])?;
            run("ip", &["link", "set", &outside, "master", bridge, "up"])?;
            let inside = |words: &[&str]| run("ip", &[&["-n", name.as_str()][..], words].concat());
            inside(&["addr", "add", &format!("{}/24", networks.address(at)), "dev", "eth0"])?;
            inside(&["link", "set", "eth0", "up"])?;
            inside(&["link", "set", "lo", "up"])?;
        }
        Ok(networks)
    }

    /// The address of the node in network `at`.
    pub fn address(&self, at: usize) -> std::net::Ipv4Addr {
        [10, 77, self.subnet, 10 + at as u8].into()
    }

    /// What is put before a command to run it in network `at`.
    pub fn wrapper(&self, at: usize) -> [String; 4] {
        ["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), self.names[at].clone()]
    }

    /// Drops everything between `at` and the others, both ways, silently; clients on the bridge still reach it.
    ///
    /// # Errors
    /// If a command fails.
    pub fn cut_off(&self, at: usize) -> anyhow::Result<()> {
        self.cut(&self.whole_cut(at))
    }

    /// Takes the cut back.
    ///
    /// # Errors
    /// If a command fails.
    pub fn heal(&self, at: usize) -> anyhow::Result<()> {
        self.mend(&self.whole_cut(at))
    }

    /// Drops what the cut names, silently.
    ///
    /// # Errors
    /// If a command fails.
    pub fn cut(&self, cut: &Cut) -> anyhow::Result<()> {
        self.rules(cut, "-A")
    }

    /// Takes a cut back.
    ///
    /// # Errors
    /// If a command fails.
    pub fn mend(&self, cut: &Cut) -> anyhow::Result<()> {
        self.rules(cut, "-D")
    }

    fn whole_cut(&self, at: usize) -> Cut {
        Cut { at, others: (0..self.names.len()).filter(|other| *other != at).collect(), ways: Ways::Both }
    }

    fn rules(&self, cut: &Cut, action: &str) -> anyhow::Result<()> {
        let others: Vec<String> = cut.others.iter().map(|other| self.address(*other).to_string()).collect();
        let drop = |chain: &str, side: &str| {
            let inside = ["netns", "exec", &self.names[cut.at], "iptables", "-w", action, chain, side, &others.join(","), "-j", "DROP"];
            run("ip", &inside)
        };
        if cut.ways != Ways::Out {
            drop("INPUT", "-s")?;
        }
        if cut.ways != Ways::In {
            drop("OUTPUT", "-d")?;
        }
        Ok(())
    }

    fn link(&self, at: usize) -> String {
        format!("{}v{at}", self.bridge)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        // As far as they were made.
        for (at, name) in self.names.iter().enumerate() {
            let _ = run("ip", &["link", "del", &self.link(at)]);
            let _ = run("ip", &["netns", "del", name]);
        }
        let _ = run("ip", &["link", "del", &self.bridge]);
    }
}
