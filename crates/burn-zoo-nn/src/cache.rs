//! Keys and values of the positions already seen, so that a new token costs one position.

use burn::tensor::Tensor;

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

    /// Forgets every position of the decoder, keeping what the encoder read.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            (layer.buffers, layer.length) = (None, 0);
        }
    }

    /// Forgets all positions but the first `length`.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }
}

/// Keys and values of one attention layer, in buffers that grow up to the capacity.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// Keys and values, `[batch, n_kv_heads, allocated, head_dim]`, once there are any. Taken out while
    /// they are written, so that the write happens in place.
    buffers: Option<[Tensor<4>; 2]>,
    /// Keys and values of the memory, `[batch, n_kv_heads, seq, head_dim]`.
    memory: Option<(Tensor<4>, Tensor<4>)>,
    capacity: usize,
    length: usize,
}

impl LayerCache {
    /// Positions that the first buffers have room for, where so many fit.
    const FIRST: usize = 256;

    /// An empty cache for `capacity` positions, of which it takes the memory as it fills.
    pub fn new(capacity: usize) -> Self {
        Self {
            buffers: None,
            memory: None,
            capacity,
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

    /// A buffer of what is stored, of what is new, and of room for more: twice the old one, so that growing costs little.
    fn grown(&self, buffer: Option<Tensor<4>>, new: Tensor<4>) -> Tensor<4> {
        let [batch, n_kv_heads, seq, head_dim] = new.dims();
        let allocated = buffer.as_ref().map_or(0, |buffer| buffer.dims()[2]);
        let end = self.length + seq;
        let size = end.max(2 * allocated).max(Self::FIRST).min(self.capacity);
        let room = [batch, n_kv_heads, size - end, head_dim];
        let room = (end < size).then(|| Tensor::zeros(room, (&new.device(), new.dtype())));
        let stored = buffer.map(|buffer| buffer.narrow(2, 0, self.length));
        Tensor::cat(stored.into_iter().chain([new]).chain(room).collect(), 2)
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
    /// When they do not fit, or are of other sizes than what is stored in more than their number.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, n_kv_heads, seq, head_dim] = key.dims();
        let (start, end) = (self.length, self.length + seq);
        assert!(
            end <= self.capacity,
            "cache: {end} positions do not fit into {}",
            self.capacity
        );
        let [keys, values] = match self.buffers.take() {
            Some([keys, values]) if end <= keys.dims()[2] => {
                let target = [0..batch, 0..n_kv_heads, start..end, 0..head_dim];
                [
                    keys.slice_assign(target.clone(), key),
                    values.slice_assign(target, value),
                ]
            }
            stored => {
                let [keys, values] = stored.map_or([None, None], |stored| stored.map(Some));
                [self.grown(keys, key), self.grown(values, value)]
            }
        };
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
