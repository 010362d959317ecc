//! A layered layout: ranks become columns, long edges get a bend in each column they cross, and
//! columns are ordered so that few edges cross.

use super::View;

/// Where everything is, in pixels.
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Left upper corner of each node.
    pub(super) nodes: Vec<(f64, f64)>,
    /// For each edge the points it goes through, ends included.
    pub(super) edges: Vec<Vec<(f64, f64)>>,
}

pub(super) const NODE_WIDTH: f64 = 190.0;
pub(super) const NODE_HEIGHT: f64 = 62.0;
const COLUMN_GAP: f64 = 90.0;
const ROW_GAP: f64 = 18.0;
const BEND_HEIGHT: f64 = 6.0;
const MARGIN: f64 = 24.0;
/// Room for the title.
const TOP: f64 = 56.0;
/// Most bends; beyond, edges are drawn straight: such a graph is read by zooming anyway.
const BENDS_MAX: usize = 50_000;
/// How often columns are put in order. The gain of more is small.
const SWEEPS: usize = 8;

/// A place in a column: a node, or the bend of an edge.
#[derive(Clone, Copy)]
enum Item {
    Node,
    Bend,
}

pub(super) fn layout(view: &View) -> Layout {
    let columns_count = view.nodes.iter().map(|node| node.rank + 1).max().unwrap_or(0);
    let mut items: Vec<Item> = vec![Item::Node; view.nodes.len()];
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); columns_count];
    for (i, node) in view.nodes.iter().enumerate() {
        columns[node.rank].push(i);
    }
    let rank = |node: usize| view.nodes[node].rank;
    let span = |edge: &super::Edge| rank(edge.to) - rank(edge.from) - 1;
    let bends = view.edges.iter().map(span).sum::<usize>() <= BENDS_MAX;
    // The chain of items that each edge goes through.
    let mut chains: Vec<Vec<usize>> = Vec::with_capacity(view.edges.len());
    for edge in &view.edges {
        let mut chain = vec![edge.from];
        if bends {
            for column in &mut columns[rank(edge.from) + 1..rank(edge.to)] {
                column.push(items.len());
                chain.push(items.len());
                items.push(Item::Bend);
            }
        }
        chain.push(edge.to);
        chains.push(chain);
    }
    order(&mut columns, &chains, items.len());
    let height_of = |item: usize| match items[item] {
        Item::Node => NODE_HEIGHT,
        Item::Bend => BEND_HEIGHT,
    };
    let column_height =
        |column: &Vec<usize>| column.iter().map(|i| height_of(*i) + ROW_GAP).sum::<f64>() - ROW_GAP;
    let tallest = columns.iter().map(column_height).fold(0.0, f64::max);
    let mut at = vec![(0.0, 0.0); items.len()];
    for (c, column) in columns.iter().enumerate() {
        let x = MARGIN + c as f64 * (NODE_WIDTH + COLUMN_GAP);
        let mut y = TOP + (tallest - column_height(column)) / 2.0;
        for &item in column {
            at[item] = (x, y);
            y += height_of(item) + ROW_GAP;
        }
    }
    let through = |chain: &Vec<usize>| {
        let mut points = Vec::with_capacity(2 * chain.len());
        for (i, &item) in chain.iter().enumerate() {
            let (x, y) = at[item];
            let middle = y + height_of(item) / 2.0;
            if i > 0 {
                points.push((x, middle));
            }
            if i + 1 < chain.len() {
                points.push((x + NODE_WIDTH, middle));
            }
        }
        points
    };
    let columns_width = columns_count as f64 * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP;
    Layout {
        width: columns_width.max(NODE_WIDTH) + 2.0 * MARGIN,
        height: TOP + tallest.max(0.0) + MARGIN,
        edges: chains.iter().map(through).collect(),
        nodes: at[..view.nodes.len()].to_vec(),
    }
}

/// Orders each column by the mean position of its items' neighbours, sweeping to and fro.
fn order(columns: &mut [Vec<usize>], chains: &[Vec<usize>], items: usize) {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); items];
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); items];
    for chain in chains {
        for pair in chain.windows(2) {
            after[pair[0]].push(pair[1]);
            before[pair[1]].push(pair[0]);
        }
    }
    // Positions are relative to the column's middle, since columns are drawn centred.
    let mut position = vec![0.0f64; items];
    let place = |column: &[usize], position: &mut [f64]| {
        let middle = (column.len() as f64 - 1.0) / 2.0;
        column.iter().enumerate().for_each(|(i, item)| position[*item] = i as f64 - middle);
    };
    columns.iter().for_each(|column| place(column, &mut position));
    for sweep in 0..SWEEPS {
        let forth = sweep % 2 == 0;
        let neighbours = if forth { &before } else { &after };
        for c in 0..columns.len() {
            let column = if forth {
                &mut columns[c]
            } else {
                let last = columns.len() - 1;
                &mut columns[last - c]
            };
            let mean = |item: usize| match neighbours[item].len() {
                0 => position[item],
                n => neighbours[item].iter().map(|other| position[*other]).sum::<f64>() / n as f64,
            };
            let mut keyed: Vec<(f64, usize)> = column.iter().map(|item| (mean(*item), *item)).collect();
            // Stable, so that ties keep the order of the file.
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            *column = keyed.into_iter().map(|(_, item)| item).collect();
            place(column, &mut position);
        }
    }
}
