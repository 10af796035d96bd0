//! The fixture of every package that needs a broker: a nats-server on a random loopback port with its data in a temporary folder; it ends with the test.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use razar_bus::{Bus, Config};

/// Longest that any test waits for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A broker of one test.
pub(crate) struct Broker {
    pub(crate) port: u16,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

/// Where the server is: `RAZAR_NATS_SERVER`, else PATH, else what `make tools` fetched.
fn server() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("RAZAR_NATS_SERVER") {
        return Ok(path.into());
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    let fetched = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/razar/tools/nats-server-2.15.1"));
    let found = on_path.chain(fetched).map(|folder| folder.join("nats-server")).find(|p| p.is_file());
    found.context("no nats-server: run `make tools`, or set RAZAR_NATS_SERVER")
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Broker {
    pub(crate) fn start() -> Result<Self> {
        Self::with("")
    }

    /// With more lines of configuration.
    pub(crate) fn with(more: &str) -> Result<Self> {
        let mut broker = Self { port: free_port()?, folder: tempfile::tempdir()?, child: None };
        let config = format!(
            "host: 127.0.0.1\nport: {}\nmax_payload: 262144\njetstream {{ store_dir: \"{}\" }}\n{more}\n",
            broker.port,
            broker.folder.path().join("store").display()
        );
        std::fs::write(broker.folder.path().join("server.conf"), config)?;
        broker.spawn()?;
        Ok(broker)
    }

    pub(crate) fn spawn(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.folder.path().join("log"))?;
        let mut command = Command::new(server()?);
        command.arg("-c").arg(self.folder.path().join("server.conf")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if began.elapsed() > SOON {
                bail!("the broker does not listen: {}", std::fs::read_to_string(self.folder.path().join("log"))?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.as_ref().context("not running")?.id();
        Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status()?;
        Ok(())
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            servers: vec![format!("nats://127.0.0.1:{}", self.port)],
            mesh: "razar".to_owned(),
            name: "test".to_owned(),
            credentials: None,
        }
    }

    /// A connected bus.
    pub(crate) async fn bus(&self) -> Result<Bus> {
        let bus = Bus::connect(self.config()).await?;
        bus.ready(SOON).await?;
        Ok(bus)
    }

    /// A connected bus with all stores.
    pub(crate) async fn provisioned(&self) -> Result<Bus> {
        let bus = self.bus().await?;
        razar_bus::provision(&bus).await?;
        Ok(bus)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.signal("CONT");
        self.kill();
    }
}

/// Fails a test that waits in vain.
pub(crate) async fn soon<T>(what: &str, op: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(SOON, op).await.with_context(|| format!("waited in vain for: {what}"))
}
