//! A mesh that nobody embeds: a broker of its own, and every agent and the node as anybody may run them, all of them behind one line that
//! a test can hurt. The command line and the test itself reach the broker past that line.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::{PAYLOAD_BYTES_MAX, bucket::lease_key};
use rustix::process::Signal;

use super::{ByHand, Mesh, Proxy, SOON, binary, port_is_open, signal, wait_for};

/// The agents, by the names of their programs.
const AGENTS: [&str; 5] = ["registry", "orchestrator", "recovery", "quarantine", "watchdog"];
/// The node.
const NODE: &str = "a";

/// The mesh, its line, and who is behind it.
#[derive(Debug)]
pub struct Wired {
    /// The mesh.
    pub mesh: Mesh,
    /// Between the broker and everybody.
    pub line: Proxy,
    /// By name of the replica: `registry-1`.
    agents: BTreeMap<String, ByHand>,
    node: ByHand,
}

impl Wired {
    /// A mesh with so many replicas of each agent, ready for a stack.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(replicas: u32) -> Result<Self> {
        let mesh = Mesh::new()?;
        let dir = mesh.state().join("broker");
        fs::create_dir_all(&dir)?;
        let store = serde_json::to_string(&dir)?;
        let config = format!(
            "host: 127.0.0.1\nport: {}\nmax_payload: {PAYLOAD_BYTES_MAX}\njetstream {{ store_dir: {store}, sync_interval: always }}\n",
            mesh.broker_port(),
        );
        fs::write(dir.join("nats.conf"), config)?;
        mesh.broker_by_hand()?;
        wait_for("the broker", SOON, || Ok(port_is_open(mesh.broker_port()).then_some(())))?;
        let mut provision = Command::new(binary("razar-provision")?);
        mesh.environment(&mut provision);
        let out = provision.stdout(Stdio::null()).output()?;
        ensure!(out.status.success(), "provision: {}", String::from_utf8_lossy(&out.stderr));
        let line = Proxy::start(mesh.broker_port())?;
        let node = mesh.node_by_hand(NODE, line.port())?;
        let mut wired = Self { mesh, line, agents: BTreeMap::new(), node };
        for agent in AGENTS {
            (1..=replicas).try_for_each(|n| wired.run(agent, n))?;
        }
        let wanted = wired.agents.len();
        wait_for("the node and every agent", SOON, || {
            let seen = wired.mesh.observed()?;
            Ok((seen.agents.len() == wanted && seen.nodes.len() == 1).then_some(()))
        })?;
        for agent in AGENTS {
            wait_for("a holder of each shard", SOON, || Ok(wired.holder(agent).ok()))?;
        }
        Ok(wired)
    }

    /// Runs replica `n` of an agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, agent: &str, n: u32) -> Result<()> {
        let name = format!("{agent}-{n}");
        let child = self.mesh.by_hand(&format!("razar-{agent}"), self.line.port(), &name)?;
        self.agents.insert(name, child);
        Ok(())
    }

    /// Kills replica `n` of an agent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, agent: &str, n: u32) -> Result<()> {
        self.agents.remove(&format!("{agent}-{n}")).map(drop).with_context(|| format!("{agent}-{n} does not run"))
    }

    /// Sends a signal to a replica.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, replica: &str, what: Signal) -> Result<()> {
        signal(self.agents.get(replica).with_context(|| format!("{replica} does not run"))?.pid(), what)
    }

    /// The replica that holds an agent's shard.
    ///
    /// # Errors
    /// When nobody does.
    pub fn holder(&self, agent: &str) -> Result<String> {
        let bucket = format!("{}_leases", self.mesh.name());
        let value = self.mesh.raw()?.newest(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{}", lease_key(agent, 0)))?;
        let name = String::from_utf8(value)?;
        ensure!(!name.is_empty(), "nobody holds the lease of {agent}");
        Ok(name)
    }

    /// Stops the stack as an operator does, then ends everybody; no component may be left, and nobody may have panicked.
    ///
    /// # Errors
    /// When it is not so.
    pub fn end(self) -> Result<()> {
        self.mesh.razar(&["down"])?.ok()?;
        drop((self.agents, self.node));
        let left: Vec<_> = self.mesh.processes().into_iter().filter(|p| !p.command.contains("nats-server")).collect();
        ensure!(left.is_empty(), "left after razar down: {left:?}");
        self.mesh.nobody_panicked()
    }
}
