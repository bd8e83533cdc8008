use super::{parse_graph, print_graph};

const TINY: &str = r#"graph tiny {
  input %token: i32[rows]
  weight @embedding: bf16[vocabulary=101, hidden=64] = "model.embed_tokens.weight"[101]
  cache #layers.0.key: key bf16[slots=1, kv_heads=2, context=32, head_dim=16]
  %embedding: f32[rows, hidden=64] = embed(%token, @embedding)
  output %embedding
}
"#;

#[test]
fn tiny() {
    let graph = parse_graph(TINY).unwrap();
    assert_eq!(print_graph(&graph), TINY);
}
