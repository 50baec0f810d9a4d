//! `event`: emits one, or follows those of topics.

use proto_spec::{Capability, Pattern};
use serde_json::Value;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, escape, note};
use crate::time;

/// Emits events, and follows them
#[derive(Debug, clap::Args)]
pub(crate) struct Event {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Emits one event; needs event.emit.TOPIC
    Emit {
        /// The topic: build.done
        topic: Capability,
        /// What happened, as JSON
        #[arg(long, value_name = "JSON", default_value = "null")]
        data: String,
    },
    /// Prints events as they come; needs event.subscribe.TOPIC for each
    Tail {
        /// Topics: build.done, build.*
        #[arg(required = true)]
        topics: Vec<Pattern>,
        /// Stop after so many
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
}

pub(crate) async fn run(args: Event, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Emit { topic, data } => {
            let data: Value = serde_json::from_str(&data).map_err(|e| {
                Failure::usage(format!("--data is not JSON: {e}"))
                    .next("a text needs its quotes: '\"done\"'")
            })?;
            chosen.agent()?.emit(topic.as_str(), &data).await?;
            output.give(&serde_json::json!({"emitted": topic}), || {
                format!("Emitted {topic}.")
            })
        }
        Act::Tail { topics, count } => tail(chosen, output, &topics, count).await,
    }
}

async fn tail(chosen: &Chosen, output: Output, topics: &[Pattern], count: Option<u64>) -> Outcome {
    let agent = chosen.agent()?;
    let mut events = agent.subscribe(topics).await?;
    note("Following; end with Ctrl-C.");
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = events.next().await else {
            return Err(Failure::fault("the subscription ended"));
        };
        left -= 1;
        print(&event?, output)?;
    }
    Ok(())
}

fn print(event: &agent_sdk::Event, output: Output) -> Outcome {
    match event {
        agent_sdk::Event::Missed(missed) => {
            let value =
                serde_json::json!({"missed": missed.count, "reconnected": missed.reconnected});
            output.give(&value, || match missed.reconnected {
                true => "(the connection was lost and is back: events may be missing here)".into(),
                false => format!(
                    "({} events are missing here: this end was too slow)",
                    missed.count
                ),
            })
        }
        agent_sdk::Event::Emitted(event) => {
            let at = time::show(event.at);
            let value = serde_json::json!({"topic": event.topic, "from": event.from, "at": at, "data": event.data});
            output.give(&value, || {
                format!(
                    "{at}  {}  {}  {}",
                    event.topic,
                    event.from,
                    escape(event.data.get())
                )
            })
        }
    }
}
