//! What the benches measure with: CPU time and memory of a process, as the kernel accounts for them.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// CPU time that a process has used, user and system together; ticks of 10 ms.
///
/// # Errors
///
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let fields = stat(pid)?;
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// What the kernel says of a process after its name: its state, its parent …
fn stat(pid: u32) -> Result<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses, and may hold spaces.
    let rest = stat.rsplit_once(") ").context("a stat line")?.1;
    Ok(rest.split(' ').map(str::to_owned).collect())
}

/// The processes that a process has started and that have not ended.
///
/// # Errors
///
/// When the system does not say.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        // What ends meanwhile is nobody's child.
        let Some((id, fields)) = id.and_then(|id| Some((id, stat(id).ok()?))) else {
            continue;
        };
        if fields[1].parse() == Ok(pid) {
            all.push(id);
        }
    }
    Ok(all)
}

/// Resident memory of a process, in KiB.
///
/// # Errors
///
/// When there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("VmRSS")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("a number")?
        .parse()?)
}

/// The middle of several measurements.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The measurement that so many percent of them are at most, about.
pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}
