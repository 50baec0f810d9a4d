//! Where clients of ours are put to the test: an organisation in which whoever comes may wrap a server and call it.

use anyhow::Result;

use crate::binaries;
use crate::by_hand::ByHand;

/// The variable that names its folder.
pub const GROUND: &str = "FEM_GROUND";
/// What a newcomer starts from, in the folder.
pub const JOIN: &str = "acme/join.toml";
/// By which newcomers register, in the folder.
pub const ENROLMENT: &str = "servers.enrol";
/// The context of an agent that may call everything, in the folder.
pub const HOST: &str = "host.toml";

/// An organisation whose broker runs.
#[derive(Debug)]
pub struct Ground(ByHand);

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// When a part of it fails.
    pub fn open() -> Result<Self> {
        let acme = ByHand::open("acme")?;
        acme.join("host --capability *")?;
        acme.admin(&format!(
            "enrol issue s* --ceiling s.none --uses 1000 --out {ENROLMENT}"
        ))?;
        Ok(Self(acme))
    }

    /// The command that runs `client` here, as a shell takes it: no part of it has a space.
    ///
    /// # Errors
    ///
    /// When our binaries cannot be built.
    pub fn command(&self, client: &str) -> Result<String> {
        let cli = binaries::path("fem-cli")?;
        let binaries = cli.parent().unwrap_or(&cli).display();
        let folder = self.0.folder().display();
        Ok(format!(
            "env {GROUND}={folder} FEM_BINARIES={binaries} {client}"
        ))
    }
}
