//! The README's example, as it stands there.

#![allow(missing_docs)]

use dflow_hwtests::run::{Scene, root};

/// The fenced block of `text` whose first line is `head`, without its fences.
fn block<'a>(text: &'a str, head: &str) -> &'a str {
    let start =
        text.find(&format!("\n{head}\n")).unwrap_or_else(|| panic!("no block begins with {head}")) + 1;
    let end = text[start..].find("\n```").expect("a closed fence");
    &text[start..=start + end]
}

#[test]
fn the_example_counts_lines() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let scene = Scene::new();
    scene.write("count.yaml", block(&readme, "# count.yaml"));
    scene.write("count.py", block(&readme, "# count.py"));
    let text: String = (0..200_000).map(|i| format!("line {i}\n")).collect();
    scene.write("some.txt", &text);
    assert!(text.len() > 2 << 20, "more than one piece");
    for start in ["first-byte", "all-ready"] {
        let ended =
            scene.start(&["run", "-q", "count.yaml", "--input", "text=@some.txt", "--start", start]).end();
        // A line may be cut in two, its end may not.
        assert_eq!(ended.text(), "200000");
    }
    scene.start(&["lint", "count.yaml"]).end().expect(0, &["no mistakes"]);
    assert!(scene.start(&["graph", "count.yaml"]).end().text().contains("split"));
    scene.assert_nothing_left();
}
