//! What a process gives up, for itself and for all that come from it, and never gets back.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};

use seccompiler::BpfProgram;

use super::filter;
use super::policy::{Network, Wanted};
use super::room::{FILES, Missing, of};

/// The Landlock version with everything that we rely on: files, TCP, and both scopes.
const LANDLOCK: ABI = ABI::V6;
/// Signals under way and timers, of all processes together.
const SIGNALS: u64 = 256;
/// Address space of a process that makes its own code: engines reserve far more than they use.
const RESERVED_MAX: u64 = 64 << 30;

/// What our own helper needs beside the program that it keeps under the same limit.
const HELPER_SPACE: u64 = 128 << 20;

/// Limits of each process; those of all together are kept by the watch.
pub(super) fn limits(wanted: &Wanted, processes: u64) -> Result<(), Missing> {
    let space = match wanted.code_at_run_time {
        true => RESERVED_MAX.max(wanted.memory_bytes),
        false => wanted.memory_bytes + HELPER_SPACE,
    };
    let seconds = (wanted.cpu_ms + wanted.wall_ms).div_ceil(1_000) + 1;
    let limits = [
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
        (Resource::Sigpending, SIGNALS),
        (Resource::Nofile, wanted.descriptors.into()),
        (Resource::Fsize, wanted.disk_bytes),
        (Resource::Nproc, processes),
        (Resource::Data, wanted.memory_bytes),
        (Resource::As, space),
        (Resource::Cpu, seconds),
    ];
    for (resource, most) in limits {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).map_err(of("limits"))?;
    }
    Ok(())
}

/// Gives up every capability, and the ways to any. Whoever has none gives up what is left.
pub(super) fn privileges() -> Result<(), Missing> {
    let failed = of("capabilities");
    set_no_new_privs(true).map_err(&failed)?;
    let able = rustix::thread::capabilities(None).map_err(&failed)?;
    if able.effective.contains(CapabilitySet::SETPCAP) {
        for one in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // Beyond the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(why) => return Err(failed(why)),
            }
        }
        let bits = CapabilitiesSecureBits::from_bits_retain(0x2f)
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(bits).map_err(&failed)?;
    }
    clear_ambient_capability_set().map_err(&failed)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(&failed)
}

/// What may be done where.
pub(super) struct Place<F>(pub(super) F, pub(super) Rights);

/// What may be done in a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    Read,
    Run,
    Device,
    Own,
}

impl Rights {
    fn access(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let not_own = AccessFs::Execute
            | AccessFs::MakeSock
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::IoctlDev;
        match self {
            Self::Read => read,
            Self::Run => read | AccessFs::Execute,
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile,
            Self::Own => AccessFs::from_all(LANDLOCK) & !not_own,
        }
    }
}

/// Files only in these places, no TCP unless the network is open, no signals and no abstract sockets
/// beyond the box.
pub(super) fn landlock<F: AsFd>(
    wanted: &Wanted,
    places: impl IntoIterator<Item = Place<F>>,
) -> Result<(), Missing> {
    let network = match wanted.network {
        Network::Closed => AccessNet::from_all(LANDLOCK),
        Network::Open => AccessNet::BindTcp.into(),
    };
    let enforced = || -> Result<bool, Box<dyn std::error::Error>> {
        let mut rules: RulesetCreated = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(network)?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?;
        for Place(place, rights) in places {
            let is_folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode)
                == rustix::fs::FileType::Directory;
            let access = match is_folder {
                true => rights.access(),
                false => rights.access() & AccessFs::from_file(LANDLOCK),
            };
            rules = rules.add_rule(PathBeneath::new(place, access))?;
        }
        Ok(rules.restrict_self()?.ruleset == RulesetStatus::FullyEnforced)
    };
    match enforced() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Missing(
            "Landlock",
            io::Error::other("enforced in part only"),
        )),
        Err(why) => Err(Missing("Landlock", io::Error::other(why.to_string()))),
    }
}

/// A place by its path, to be named and not read.
pub(super) fn place(path: &Path, rights: Rights) -> Result<Place<std::os::fd::OwnedFd>, Missing> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
    let opened = opened.map_err(|why| {
        Missing(
            FILES,
            io::Error::other(format!("{}: {why}", path.display())),
        )
    })?;
    Ok(Place(opened, rights))
}

/// Which system calls are left to a program.
pub(super) struct Calls(BpfProgram);

impl Calls {
    pub(super) fn of(wanted: &Wanted) -> Result<Self, Missing> {
        Ok(Self(filter::program(wanted).map_err(of("seccomp"))?))
    }

    /// The last step.
    pub(super) fn leave(&self) -> Result<(), Missing> {
        let failed = of("seccomp");
        seccompiler::apply_filter(&self.0).map_err(|why| failed(io::Error::other(why)))
    }
}
