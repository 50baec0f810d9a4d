//! Where everything in a picture stands: columns by distance, a lane for every arrow. All in pixels.
//!
//! An arrow to the right goes from a right side to a left side, one to the left the other way, and one
//! within a column from a right side to a right side. Each has a place of its own on both sides, in the
//! order of where it comes from, so that the numbers just before their heads never overlap.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::identity::Org;

use super::{Arrow, Node, Picture};

pub(super) const MARGIN: i32 = 24;
pub(super) const NODE_WIDTH: i32 = 176;
/// Above the nodes, for the caption.
const HEAD: i32 = 56;
const NODE_HEIGHT: i32 = 40;
const COLUMN_WIDTH: i32 = 400;
const ROW_GAP: i32 = 18;
/// Between two arrows on one side: as high as a number.
const LANE: i32 = 13;
/// How far an arrow runs straight away from a node, about.
pub(super) const BEND: i32 = 110;

pub(super) struct Layout<'p> {
    pub(super) nodes: Vec<Place<'p>>,
    pub(super) lines: Vec<Line<'p>>,
    pub(super) width: i32,
    pub(super) height: i32,
}

/// A node, by its upper left corner.
pub(super) struct Place<'p> {
    pub(super) node: &'p Node,
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) height: i32,
}

/// An arrow, from its first end to its second.
pub(super) struct Line<'p> {
    pub(super) arrow: &'p Arrow,
    pub(super) ends: [End; 2],
}

#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) side: Side,
    pub(super) x: i32,
    pub(super) y: i32,
    /// Which of the nodes.
    node: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Left,
    Right,
}

impl Place<'_> {
    pub(super) fn middle(&self) -> i32 {
        self.y + self.height / 2
    }
}

impl<'p> Layout<'p> {
    pub(super) fn of(picture: &'p Picture) -> Self {
        let mut lines = lines(picture);
        let columns = columns(picture, &lines);
        let mut nodes: Vec<Place<'p>> = picture
            .nodes
            .iter()
            .map(|node| Place {
                node,
                x: MARGIN + i32::from(node.hops) * COLUMN_WIDTH,
                y: 0,
                height: NODE_HEIGHT,
            })
            .collect();
        for (node, lanes) in lanes(&lines) {
            nodes[node].height = NODE_HEIGHT.max(lanes * LANE + 6);
        }
        let height_of = |column: &Vec<usize>| {
            let heights = column.iter().map(|node| nodes[*node].height + ROW_GAP);
            heights.sum::<i32>() - ROW_GAP
        };
        let heights: Vec<i32> = columns.iter().map(height_of).collect();
        let tallest = heights.iter().copied().max().unwrap_or(0);
        for (column, height) in columns.iter().zip(heights) {
            let mut y = HEAD + (tallest - height) / 2;
            for node in column {
                nodes[*node].y = y;
                y += nodes[*node].height + ROW_GAP;
            }
        }
        spread(&mut lines, &nodes);
        let right = nodes.iter().map(|place| place.x).max().unwrap_or(MARGIN);
        Self {
            nodes,
            lines,
            // Arrows within the last column bend to the right of it.
            width: right + NODE_WIDTH + BEND + MARGIN,
            height: HEAD + tallest + 2 * MARGIN,
        }
    }
}

/// The arrows whose nodes are there, and which sides they join; where on them is not known yet.
fn lines<'p>(picture: &'p Picture) -> Vec<Line<'p>> {
    let index: BTreeMap<&Org, usize> = picture
        .nodes
        .iter()
        .map(|node| &node.org)
        .zip(0..)
        .collect();
    let of = |arrow: &'p Arrow| {
        let (from, to) = (*index.get(&arrow.trustor)?, *index.get(&arrow.trustee)?);
        let sides = match picture.nodes[from].hops.cmp(&picture.nodes[to].hops) {
            Ordering::Less => [Side::Right, Side::Left],
            Ordering::Equal => [Side::Right, Side::Right],
            Ordering::Greater => [Side::Left, Side::Right],
        };
        let end = |(node, side)| End {
            side,
            x: 0,
            y: 0,
            node,
        };
        let ends = [(from, sides[0]), (to, sides[1])].map(end);
        Some(Line { arrow, ends })
    };
    picture.arrows.iter().filter_map(of).collect()
}

/// How many arrows join the fuller side of each node.
fn lanes(lines: &[Line<'_>]) -> BTreeMap<usize, i32> {
    let mut sides: BTreeMap<(usize, Side), i32> = BTreeMap::new();
    for end in lines.iter().flat_map(|line| line.ends) {
        *sides.entry((end.node, end.side)).or_default() += 1;
    }
    let mut fuller: BTreeMap<usize, i32> = BTreeMap::new();
    for ((node, _), lanes) in sides {
        let most = fuller.entry(node).or_default();
        *most = lanes.max(*most);
    }
    fuller
}

/// The nodes of each column from above to below: each near the middle of those in the columns before that
/// lead to it, so that fewer arrows cross.
fn columns(picture: &Picture, lines: &[Line<'_>]) -> Vec<Vec<usize>> {
    let mut columns: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for (node, at) in picture.nodes.iter().zip(0..) {
        columns.entry(node.hops).or_default().push(at);
    }
    let mut rank = vec![0; picture.nodes.len()];
    for (hops, column) in &mut columns {
        let before = |line: &Line<'_>, node| {
            let [from, to] = line.ends.map(|end| end.node);
            (to == node && picture.nodes[from].hops < *hops).then_some(rank[from])
        };
        column.sort_by_cached_key(|node| {
            let ranks: Vec<usize> = lines
                .iter()
                .filter_map(|line| before(line, *node))
                .collect();
            // In thousandths, so that two middles are rarely the same.
            (
                ranks.iter().sum::<usize>() * 1_000 / ranks.len().max(1),
                *node,
            )
        });
        for (node, place) in column.iter().zip(0..) {
            rank[*node] = place;
        }
    }
    columns.into_values().collect()
}

/// Gives every end a lane on its side, from above to below as the arrows' other ends stand.
fn spread(lines: &mut [Line<'_>], nodes: &[Place<'_>]) {
    /// How high the other end stands, and which end of which line this is.
    type Lane = (i32, usize, usize);
    let mut sides: BTreeMap<(usize, Side), Vec<Lane>> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        let [from, to] = line.ends;
        for (which, end, other) in [(0, from, to), (1, to, from)] {
            let lanes = sides.entry((end.node, end.side)).or_default();
            lanes.push((nodes[other.node].middle(), at, which));
        }
    }
    for ((node, side), mut lanes) in sides {
        lanes.sort_unstable();
        let place = &nodes[node];
        let count = i32::try_from(lanes.len()).unwrap_or(i32::MAX);
        let mut y = place.middle() - (count - 1) * LANE / 2;
        for (_, at, which) in lanes {
            let end = &mut lines[at].ends[which];
            end.x = place.x + if side == Side::Left { 0 } else { NODE_WIDTH };
            end.y = y;
            y += LANE;
        }
    }
}
