//! A target for tests: it takes every request and prefers panels.

use qwen2c_request::{
    CacheType, Cost, KernelChoice, KernelRequest, LayoutOption, Operation, Target, TargetDescription,
    Unservable, WeightLayout, WeightType,
};

/// Panels of 8 rows.
pub(crate) const PANELS: WeightLayout = WeightLayout::Panels { lanes: 8, pair: 2, separate_halves: false };

/// The same with gate and up alternating.
pub(crate) const ALTERNATING: WeightLayout =
    WeightLayout::Panels { lanes: 8, pair: 2, separate_halves: true };

/// The target.
pub(crate) struct FakeTarget {
    /// Name and vector width.
    pub(crate) description: TargetDescription,
    /// An operation's name that the target refuses.
    pub(crate) refused: Option<&'static str>,
}

impl FakeTarget {
    /// A target that refuses nothing.
    pub(crate) fn new() -> Self {
        let description = TargetDescription {
            name: "fake".to_owned(),
            family: "fake",
            vector_lanes: 8,
            joins_steps_of_prompts: true,
            prompt_rows: &[8],
            ..TargetDescription::default()
        };
        Self { description, refused: None }
    }
}

impl Target for FakeTarget {
    fn description(&self) -> &TargetDescription {
        &self.description
    }

    fn choose(&self, request: &KernelRequest) -> Result<KernelChoice, Unservable> {
        let name = request.operation.name();
        if self.refused == Some(name) {
            return Err(Unservable { reason: format!("there is no kernel for `{name}`") });
        }
        let options = |weight: &WeightType| {
            let row_major = LayoutOption { layout: WeightLayout::RowMajor, cost: 300 };
            if weight.dimensions.len() == 1 {
                return vec![LayoutOption { cost: 100, ..row_major }];
            }
            match request.operation {
                // A gather reads rows best where they lie together.
                Operation::Embed => vec![
                    LayoutOption { layout: WeightLayout::RowMajor, cost: 100 },
                    LayoutOption { layout: PANELS, cost: 110 },
                ],
                Operation::Matmul { silu_multiply: true, .. }
                | Operation::ExpertMatmul { silu_multiply: true, .. } => {
                    vec![LayoutOption { layout: ALTERNATING, cost: 100 }]
                }
                Operation::Matmul { .. } | Operation::ExpertMatmul { .. } => {
                    vec![LayoutOption { layout: PANELS, cost: 100 }, row_major]
                }
                _ => vec![LayoutOption { layout: WeightLayout::RowMajor, cost: 100 }],
            }
        };
        let fixed_bytes =
            request.weights.iter().map(|weight| self.weight_bytes(weight, WeightLayout::RowMajor)).sum();
        let values = request.inputs.iter().chain(&request.outputs);
        Ok(KernelChoice {
            tiles: "8 columns".to_owned(),
            layouts: request.weights.iter().map(options).collect(),
            launches: Vec::new(),
            workspace_bytes: if request.caches.len() == 2 { 96 * request.max_rows } else { 0 },
            cost: Cost {
                fixed_bytes,
                bytes_per_row: values.map(|ty| ty.bytes(1, 1)).sum(),
                bytes_per_row_and_position: request.caches.iter().map(|cache| cache.head_dim * 4).sum(),
                operations_per_row: request.weights.iter().map(|w| 2 * w.rows() * w.columns()).sum(),
                operations_per_row_and_position: 0,
            },
        })
    }

    /// Norms are the same for any number of rows but one.
    fn kernel_rows(&self, request: &KernelRequest) -> u64 {
        let is_norm = matches!(request.operation, Operation::RmsNorm { .. });
        if is_norm { request.max_rows.min(8) } else { request.max_rows }
    }

    fn weight_bytes(&self, weight: &WeightType, layout: WeightLayout) -> u64 {
        let (lanes, pair) = match layout {
            WeightLayout::RowMajor => (1, 1),
            WeightLayout::Panels { lanes, pair, .. } => (u64::from(lanes), u64::from(pair)),
            WeightLayout::WarpPanels { rows, .. } => (u64::from(rows), 1),
        };
        weight.rows().next_multiple_of(lanes)
            * weight.columns().next_multiple_of(pair)
            * weight.element.bytes()
    }

    fn cache_bytes(&self, cache: &CacheType) -> u64 {
        let positions = cache.blocks() * qwen2c_request::CACHE_BLOCK_POSITIONS;
        cache.slots * cache.kv_heads * positions * cache.head_dim * cache.element.bytes()
    }
}
