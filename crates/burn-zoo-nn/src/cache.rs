//! Keys and values of the positions already seen, so that a new token costs one position.

use burn::tensor::{Device, Tensor};

use crate::pass::Memory;

/// The cache of a whole stack.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// One entry for each block.
    pub layers: Vec<LayerCache>,
    /// What cross-attention reads, for models with an encoder.
    pub memory: Option<Memory>,
}

impl KvCache {
    /// How many positions are stored.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many positions fit.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::capacity)
    }

    /// Forgets every position of the decoder, keeping the buffers and what the encoder read.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.length = 0;
        }
    }
}

/// Keys and values of one attention layer, in buffers that grow up to the capacity.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// Keys and values, `[batch, n_kv_heads, allocated, head_dim]`. Taken out while they are written,
    /// so that the write happens in place.
    buffers: Option<[Tensor<4>; 2]>,
    /// Keys and values of the memory, `[batch, n_kv_heads, seq, head_dim]`.
    memory: Option<(Tensor<4>, Tensor<4>)>,
    capacity: usize,
    length: usize,
}

impl LayerCache {
    /// Positions that a new cache has room for before it grows.
    const FIRST: usize = 256;

    /// An empty cache of shape `[batch, n_kv_heads, capacity, head_dim]`, of which it takes the memory
    /// as it fills.
    pub fn new(shape: [usize; 4], device: &Device) -> Self {
        let [batch, n_kv_heads, capacity, head_dim] = shape;
        let first = [batch, n_kv_heads, capacity.min(Self::FIRST), head_dim];
        Self {
            buffers: Some([Tensor::zeros(first, device), Tensor::zeros(first, device)]),
            memory: None,
            capacity: shape[2],
            length: 0,
        }
    }

    /// How many positions are stored.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many positions fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A buffer with room for `end` positions: twice the old one, so that growing costs little.
    fn grown(&self, buffer: Tensor<4>, end: usize) -> Tensor<4> {
        let [batch, n_kv_heads, allocated, head_dim] = buffer.dims();
        if end <= allocated {
            return buffer;
        }
        let more = end.max(2 * allocated).min(self.capacity) - allocated;
        let room = Tensor::zeros([batch, n_kv_heads, more, head_dim], &buffer.device());
        Tensor::cat(vec![buffer, room], 2)
    }

    /// Keys and values of the memory, projected when they are first asked for.
    pub fn memory(
        &mut self,
        project: impl FnOnce() -> (Tensor<4>, Tensor<4>),
    ) -> (Tensor<4>, Tensor<4>) {
        self.memory.get_or_insert_with(project).clone()
    }

    /// Appends keys and values `[batch, n_kv_heads, seq, head_dim]` and returns all that are stored,
    /// `[batch, n_kv_heads, len, head_dim]`.
    ///
    /// # Panics
    ///
    /// When they do not fit.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, n_kv_heads, seq, head_dim] = key.dims();
        let (start, end) = (self.length, self.length + seq);
        assert!(
            end <= self.capacity,
            "cache: {end} positions do not fit into {}",
            self.capacity
        );
        let buffers = self.buffers.take().expect("the buffers are put back below");
        let [keys, values] = buffers.map(|buffer| self.grown(buffer, end));
        let target = [0..batch, 0..n_kv_heads, start..end, 0..head_dim];
        let keys = keys.slice_assign(target.clone(), key);
        let values = values.slice_assign(target, value);
        self.length = end;

        let stored = [0..batch, 0..n_kv_heads, 0..end, 0..head_dim];
        let result = (
            keys.clone().slice(stored.clone()),
            values.clone().slice(stored),
        );
        self.buffers = Some([keys, values]);
        result
    }
}
