//! The browser of whoever logs in: follows an address to where it leads, as if its owner agreed to everything.
//!
//! Addresses are plain and on this machine, as those of suites and tests are.

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Pages that one address may lead through.
const HOPS_MAX: usize = 5;
const PAGE_BYTES_MAX: u64 = 64 << 10;

/// Opens an address.
///
/// # Errors
///
/// When it leads nowhere.
pub async fn open(address: &str) -> Result<()> {
    let mut address = address.to_owned();
    for _ in 0..HOPS_MAX {
        match visit(&address).await.with_context(|| address.clone())? {
            Some(next) => address = next,
            None => return Ok(()),
        }
    }
    bail!("it leads on and on")
}

/// Where a page leads, if it does.
async fn visit(address: &str) -> Result<Option<String>> {
    let page = get(address).await?;
    let (head, _) = page.split_once("\r\n\r\n").context("no page")?;
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("location").then_some(value)
    });
    Ok(location.map(str::to_owned))
}

/// What is at an address, as it came.
///
/// # Errors
///
/// When nothing comes.
pub async fn get(address: &str) -> Result<String> {
    let rest = address.strip_prefix("http://").context("not plain")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut stream = TcpStream::connect(authority).await?;
    let ask = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut page = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut page).await?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
