//! Square tiles of a product of two matrices, made by the units of a workgroup, which stand in a square too: each makes
//! some rows and columns of a tile, and keeps them.

use burn_cubecl::cubecl;
use cubecl::{client::Client, prelude::*};

/// Rows of a tile that a unit makes, and columns: it reads eight values for sixteen products.
pub(super) const EACH: usize = 4;
/// Channels that are in shared memory at once, at most.
const MOST_DEPTH: usize = 32;

/// What the code of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Units along a side of the square.
    pub(super) side: usize,
    /// Channels that are in shared memory at once: a power of two, and a multiple of `side`.
    depth: usize,
    head_dim: usize,
}

impl Tiling {
    /// The largest tiles that a device can hold, and that sequences of this length fill.
    pub(super) fn new(client: &Client, head_dim: usize, seq: usize) -> Option<Self> {
        let hardware = &client.properties().hardware;
        let widest = head_dim.next_power_of_two().min(MOST_DEPTH);
        let choices = [(16, widest), (16, 16), (8, widest), (8, 8)];
        choices.into_iter().find_map(|(side, depth)| {
            let tiling = Self {
                side,
                depth: depth.max(side),
                head_dim,
            };
            let is_filled = side == 8 || tiling.rows() <= seq;
            let is_held = side * side <= hardware.max_units_per_cube as usize
                && tiling.shared() * size_of::<f32>() <= hardware.max_shared_memory_size;
            (is_filled && is_held).then_some(tiling)
        })
    }

    /// Rows and columns of a tile.
    pub(super) fn rows(self) -> usize {
        self.side * EACH
    }

    /// Values of a tile, with one more in each row: units that read a column read from all banks.
    pub(super) fn weights(self) -> usize {
        self.rows() * (self.rows() + 1)
    }

    /// Values of some channels of as many rows, with one more in each, too.
    pub(super) fn operand(self) -> usize {
        self.rows() * (self.depth + 1)
    }

    /// A value for each row and unit along it.
    pub(super) fn parts(self) -> usize {
        self.rows() * self.side
    }

    fn shared(self) -> usize {
        self.weights() + 2 * self.operand() + self.parts()
    }

    /// How often the channels are loaded until all were.
    fn chunks(self) -> usize {
        self.head_dim.div_ceil(self.depth)
    }

    /// Channels of a row that a unit makes each time.
    fn channels(self) -> usize {
        self.depth / self.side
    }

    /// Values of rows of all channels that a unit makes.
    pub(super) fn kept(self) -> usize {
        self.chunks() * EACH * self.channels()
    }

    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.side as u32, self.side as u32)
    }
}

/// Some rows of a matrix, as it lies in memory.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    start: usize,
    row_stride: usize,
    channel_stride: usize,
    count: usize,
}

/// The positions from `first` on of a head of `[batch, n_heads, seq, head_dim]`.
#[cube]
pub(super) fn rows_of<F: Float>(
    tensor: &Tensor<F>,
    batch: usize,
    head: usize,
    first: usize,
) -> Rows {
    let head_start = batch * tensor.stride(0) + head * tensor.stride(1);
    Rows {
        start: head_start + first * tensor.stride(2),
        row_stride: tensor.stride(2),
        channel_stride: tensor.stride(3),
        count: tensor.shape(2) - first,
    }
}

/// Loads some channels of a tile's rows, zeros where there are none.
#[cube]
fn load<F: Float>(
    tensor: &Tensor<F>,
    rows: &Rows,
    first_channel: usize,
    operand: &mut Shared<[f32]>,
    #[comptime] tiling: Tiling,
) {
    let values = comptime!(tiling.rows() * tiling.depth);
    let units = comptime!(tiling.side * tiling.side);
    for index in range_stepped(UNIT_POS as usize, values, units) {
        let row = index / tiling.depth;
        let channel = index % tiling.depth;
        let mut value = 0.0f32;
        if row < rows.count && first_channel + channel < tiling.head_dim {
            let offset = row * rows.row_stride + (first_channel + channel) * rows.channel_stride;
            value = f32::cast_from(tensor[rows.start + offset]);
        }
        operand[row * comptime!(tiling.depth + 1) + channel] = value;
    }
}

/// Makes `left · rightᵀ` of one tile: `product[i · EACH + j]` is that of the unit's `i`-th row and `j`-th column.
#[cube]
pub(super) fn multiply<F: Float>(
    left: &Tensor<F>,
    left_rows: &Rows,
    right: &Tensor<F>,
    right_rows: &Rows,
    operands: &mut Operands,
    product: &mut Array<f32>,
    #[comptime] tiling: Tiling,
) {
    let stride = comptime!(tiling.depth + 1);
    let mut a = Array::<f32>::new(EACH);
    let mut b = Array::<f32>::new(EACH);
    #[unroll]
    for index in 0..comptime!(EACH * EACH) {
        product[index] = 0.0f32;
    }
    for chunk in 0..comptime!(tiling.chunks()) {
        // Others may still read what is there.
        sync_cube();
        load(
            left,
            left_rows,
            chunk * tiling.depth,
            &mut operands.left,
            tiling,
        );
        load(
            right,
            right_rows,
            chunk * tiling.depth,
            &mut operands.right,
            tiling,
        );
        sync_cube();
        for channel in 0..tiling.depth {
            #[unroll]
            for i in 0..EACH {
                let offset = comptime!(i * tiling.side);
                a[i] = operands.left[(UNIT_POS_Y as usize + offset) * stride + channel];
                b[i] = operands.right[(UNIT_POS_X as usize + offset) * stride + channel];
            }
            #[unroll]
            for i in 0..EACH {
                #[unroll]
                for j in 0..EACH {
                    product[comptime!(i * EACH + j)] += a[i] * b[j];
                }
            }
        }
    }
}

/// Shared memory for what is multiplied.
#[derive(CubeType)]
pub(super) struct Operands {
    left: Shared<[f32]>,
    right: Shared<[f32]>,
}

#[cube]
impl Operands {
    pub(super) fn new(#[comptime] tiling: Tiling) -> Self {
        Operands {
            left: Shared::<[f32]>::new_slice(comptime!(tiling.operand())),
            right: Shared::<[f32]>::new_slice(comptime!(tiling.operand())),
        }
    }
}

/// Writes a unit's part of a tile where all units can read it, as [`accumulate`] does. Nobody may still read the last.
#[cube]
pub(super) fn share(part: &Array<f32>, weights: &mut Shared<[f32]>, #[comptime] tiling: Tiling) {
    #[unroll]
    for i in 0..EACH {
        let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
        #[unroll]
        for j in 0..EACH {
            let column = UNIT_POS_X as usize + comptime!(j * tiling.side);
            weights[row * comptime!(tiling.rows() + 1) + column] = part[comptime!(i * EACH + j)];
        }
    }
}

/// Adds `weights · matrix` to `sums`, the unit's rows and channels of it. Begins by waiting for all units.
#[cube]
pub(super) fn accumulate<F: Float>(
    weights: &Shared<[f32]>,
    matrix: &Tensor<F>,
    rows: &Rows,
    operands: &mut Operands,
    sums: &mut Array<f32>,
    #[comptime] tiling: Tiling,
) {
    let channels = comptime!(tiling.channels());
    let mut a = Array::<f32>::new(EACH);
    let mut b = Array::<f32>::new(channels);
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        sync_cube();
        load(
            matrix,
            rows,
            comptime!(chunk * tiling.depth),
            &mut operands.right,
            tiling,
        );
        sync_cube();
        for k in 0..comptime!(tiling.rows()) {
            #[unroll]
            for i in 0..EACH {
                let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
                a[i] = weights[row * comptime!(tiling.rows() + 1) + k];
            }
            #[unroll]
            for j in 0..channels {
                let channel = UNIT_POS_X as usize + comptime!(j * tiling.side);
                b[j] = operands.right[k * comptime!(tiling.depth + 1) + channel];
            }
            #[unroll]
            for i in 0..EACH {
                #[unroll]
                for j in 0..channels {
                    sums[comptime!((chunk * EACH + i) * channels + j)] += a[i] * b[j];
                }
            }
        }
    }
}

/// Zeros for [`accumulate`] to add to.
#[cube]
pub(super) fn zeros(#[comptime] tiling: Tiling) -> Array<f32> {
    let mut sums = Array::<f32>::new(comptime!(tiling.kept()));
    #[unroll]
    for index in 0..comptime!(tiling.kept()) {
        sums[index] = 0.0f32;
    }
    sums
}

/// Multiplies each of the unit's rows by a number.
#[cube]
pub(super) fn scale_rows(sums: &mut Array<f32>, factors: &Array<f32>, #[comptime] tiling: Tiling) {
    let channels = comptime!(tiling.channels());
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        #[unroll]
        for i in 0..EACH {
            #[unroll]
            for j in 0..channels {
                sums[comptime!((chunk * EACH + i) * channels + j)] *= factors[i];
            }
        }
    }
}

/// Writes the unit's rows to `[rows, head_dim]`, of which the tile begins at `first` and the last is before `end`.
#[cube]
pub(super) fn store<F: Float>(
    sums: &Array<f32>,
    output: &mut [F],
    first: usize,
    end: usize,
    #[comptime] tiling: Tiling,
) {
    let channels = comptime!(tiling.channels());
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        #[unroll]
        for i in 0..EACH {
            let row = first + UNIT_POS_Y as usize + comptime!(i * tiling.side);
            #[unroll]
            for j in 0..channels {
                let channel =
                    UNIT_POS_X as usize + comptime!(chunk * tiling.depth + j * tiling.side);
                if row < end && channel < tiling.head_dim {
                    let value = sums[comptime!((chunk * EACH + i) * channels + j)];
                    output[row * tiling.head_dim + channel] = F::cast_from(value);
                }
            }
        }
    }
}
