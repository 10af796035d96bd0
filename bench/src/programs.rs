//! Where the programs lie that are measured: the release binaries beside this one (or `RAZAR_BIN_DIR`), the broker, the examples.

use std::{
    env,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The broker's version that `make tools` fetches.
const BROKER_FETCHED: &str = ".cache/razar/tools/nats-server-2.15.1/nats-server";

/// The programs.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Directory of the mesh's binaries.
    pub(crate) bin_dir: PathBuf,
    /// Broker.
    pub(crate) broker: PathBuf,
    /// Repository's root.
    pub(crate) root: PathBuf,
    /// What the meshes leave on the disk.
    left: TempDir,
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// When one is missing, with what makes it.
    pub(crate) fn find() -> Result<Self> {
        let beside = env::current_exe()?.parent().map(Path::to_owned).context("this program lies nowhere")?;
        let bin_dir = env::var_os("RAZAR_BIN_DIR").map_or(beside, PathBuf::from);
        for name in [
            "razar",
            "razar-node",
            "razar-orchestrator",
            "razar-recovery",
            "razar-registry",
            "razar-quarantine",
            "razar-watchdog",
            "razar-provision",
            "razar-demo-service",
        ] {
            if !bin_dir.join(name).is_file() {
                bail!("{} is missing; fix: make build", bin_dir.join(name).display());
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no repository")?.to_owned();
        let left = tempfile::Builder::new().prefix("razar-bench-").tempdir()?;
        Ok(Self { bin_dir, broker: broker()?, root, left })
    }

    /// A directory for a mesh. It stays until all is measured: ext4 gives out no number of a file that was deleted in the last minutes and
    /// looks past them one by one, so that each file of a mesh would cost up to half a millisecond behind a mesh just removed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn place(&self) -> Result<PathBuf> {
        Ok(tempfile::Builder::new().prefix("mesh-").tempdir_in(self.left.path())?.keep())
    }

    /// Path of a binary of the mesh.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// The demo service, as text for a stack file.
    pub(crate) fn demo(&self) -> String {
        self.binary("razar-demo-service").display().to_string()
    }
}

fn broker() -> Result<PathBuf> {
    let named = env::var_os("RAZAR_NATS_SERVER").filter(|v| !v.is_empty()).map(PathBuf::from);
    let fetched = env::var_os("HOME").map(|home| PathBuf::from(home).join(BROKER_FETCHED));
    let on_path = env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|dir| dir.join("nats-server")).collect::<Vec<_>>();
    let found = named.into_iter().chain(fetched).chain(on_path).find(|path| path.is_file());
    found.context("no nats-server; fix: make tools")
}

/// Ports of loopback that are free now, each another one.
///
/// # Errors
/// When the kernel has none.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are held until the last is chosen, so that none comes twice.
    let held = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    Ok(held.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<Vec<_>, _>>()?)
}
