//! What is said between the process that wants a program run and the helpers that confine it, over a
//! socket pair that nobody else holds.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) program: Program,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Files for its folder; their bytes follow the job.
    pub(super) inputs: Vec<(String, u64)>,
    /// Its folder on this machine, in the tier that has no other.
    pub(super) work: Option<PathBuf>,
}

/// Which program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Program {
    /// By path in the box, or by name in `/usr/bin`.
    Named(String),
    /// The live probe that this program itself contains.
    Probe(String),
    /// None: whether the box stands is all that is asked.
    Nothing,
}

/// What the helpers say.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// The helper that the box comes from, as a descriptor that comes along: it lives as long as
    /// anything in the box. Before anything else.
    Here,
    /// The box's folder, which comes along. In the full tier, before it starts.
    Folder,
    /// The box stands, and the program runs in it.
    Started,
    /// The box cannot be built: nothing ran.
    Unenforced {
        /// Which layer.
        layer: String,
        /// What the kernel said.
        why: String,
    },
    /// The box stands, but this program cannot run in it.
    NotStarted(String),
    /// It is over.
    Ended(Report),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    Exited(i32),
    Signalled(i32),
    Memory,
    Cpu,
    Deadline,
    Stopped,
}

/// What was seen of a program.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) how: How,
    pub(super) cpu_ms: u64,
    /// The most that was seen, every 20 ms; 0 for what ended sooner.
    pub(super) memory_bytes_max: u64,
}

/// A frame's length. A job may carry an argument list as long as the kernel takes.
pub(super) const FRAME_MAX: usize = 4 << 20;

/// Writes one value with the descriptor that belongs to it.
pub(super) fn say(
    socket: impl AsFd,
    value: &impl Serialize,
    descriptor: Option<&OwnedFd>,
) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| *n as usize <= FRAME_MAX);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    let sent = match descriptor {
        Some(descriptor) => send_with(&socket, &frame, &[descriptor.as_fd()])?,
        None => 0,
    };
    let mut rest = &frame[sent..];
    while !rest.is_empty() {
        rest = &rest[rustix::net::send(&socket, rest, SendFlags::NOSIGNAL)?..];
    }
    Ok(())
}

/// Descriptors that one message brings.
pub(super) const DESCRIPTORS_MAX: usize = 3;

/// Sends some bytes and at most [`DESCRIPTORS_MAX`] descriptors with them. How many bytes went.
pub(super) fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(
        &socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// Reads one value and the descriptor that came with it; none at the end.
pub(super) fn hear<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut descriptor = None;
    let mut got = 0;
    while got < head.len() {
        let (read, came) = receive(&socket, &mut head[got..])?;
        descriptor = descriptor.or(came);
        if read == 0 {
            return Ok(None);
        }
        got += read;
    }
    let length = u32::from_be_bytes(head) as usize;
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    hear_all(&socket, &mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, descriptor)))
}

/// Reads exactly as many bytes as there is room for.
pub(super) fn hear_all(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<()> {
    let mut got = 0;
    while got < bytes.len() {
        let (read, _) = receive(&socket, &mut bytes[got..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got += read;
    }
    Ok(())
}

/// Some bytes, and a descriptor if one came with them. No program inherits it.
pub(super) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let (read, descriptors) = receive_all(socket, bytes)?;
    Ok((read, descriptors.into_iter().next()))
}

/// Some bytes, and the descriptors that came with them. No program inherits those.
pub(super) fn receive_all(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let mut slices = [IoSliceMut::new(bytes)];
    let message = recvmsg(
        &socket,
        &mut slices,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = ancillary.drain().flat_map(|one| match one {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    Ok((message.bytes, descriptors.collect()))
}
