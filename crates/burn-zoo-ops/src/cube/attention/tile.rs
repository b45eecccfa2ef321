//! Square tiles of a product of two matrices, made by the units of a workgroup, which stand in a square too: each makes
//! some rows and columns of a tile, and keeps them.

use burn_cubecl::cubecl;
use cubecl::{client::Client, prelude::*};

/// Rows of a tile that a unit makes, and columns: they are `side` apart.
pub(super) const EACH: usize = 4;

/// What shared memory is read in.
pub(super) type Four = Vector<f32, Const<4>>;

/// What the code of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Units along a side of the square. A row of a tile is as many fours, and so are the channels that are in shared
    /// memory at once.
    pub(super) side: usize,
    head_dim: usize,
}

impl Tiling {
    /// The largest tiles that a device can hold, and that sequences of this length fill.
    pub(super) fn new(client: &Client, head_dim: usize, seq: usize) -> Option<Self> {
        let hardware = &client.properties().hardware;
        [16, 8].into_iter().find_map(|side| {
            let tiling = Self { side, head_dim };
            let is_filled = side == 8 || tiling.rows() <= seq;
            let is_held = side * side <= hardware.max_units_per_cube as usize
                && tiling.bytes() <= hardware.max_shared_memory_size;
            (is_filled && is_held).then_some(tiling)
        })
    }

    /// Rows and columns of a tile.
    pub(super) fn rows(self) -> usize {
        self.side * EACH
    }

    /// Fours between rows in shared memory. One is left empty, so that a column is in different banks.
    fn stride(self) -> usize {
        self.side + 1
    }

    /// Fours of a tile, or of as many channels of its rows.
    pub(super) fn fours(self) -> usize {
        self.rows() * self.stride()
    }

    /// A value for each row and unit along it.
    pub(super) fn parts(self) -> usize {
        self.rows() * self.side
    }

    /// Of shared memory.
    fn bytes(self) -> usize {
        (3 * 4 * self.fours() + self.parts()) * size_of::<f32>()
    }

    /// How often channels are loaded until all were.
    fn chunks(self) -> usize {
        self.head_dim.div_ceil(4 * self.side)
    }

    /// Fours of rows of all channels that a unit makes.
    fn kept(self) -> usize {
        self.chunks() * EACH
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

/// Shared memory for what is multiplied.
#[derive(CubeType)]
pub(super) struct Operands {
    left: Shared<[Four]>,
    right: Shared<[Four]>,
}

#[cube]
impl Operands {
    pub(super) fn new(#[comptime] tiling: Tiling) -> Self {
        Operands {
            left: Shared::<[Four]>::new_slice(comptime!(tiling.fours())),
            right: Shared::<[Four]>::new_slice(comptime!(tiling.fours())),
        }
    }
}

/// Loads some channels of a tile's rows, zeros where there are none.
#[cube]
fn load<F: Float>(
    tensor: &Tensor<F>,
    rows: &Rows,
    first_channel: usize,
    operand: &mut Shared<[Four]>,
    #[comptime] tiling: Tiling,
) {
    #[unroll]
    for i in 0..EACH {
        let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
        let channel = first_channel + 4 * UNIT_POS_X as usize;
        let offset = rows.start + row * rows.row_stride + channel * rows.channel_stride;
        let mut four = Four::new(0.0f32);
        #[unroll]
        for j in 0..4usize {
            if row < rows.count && channel + j < tiling.head_dim {
                four.insert(j, f32::cast_from(tensor[offset + j * rows.channel_stride]));
            }
        }
        operand[row * comptime!(tiling.stride()) + UNIT_POS_X as usize] = four;
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
    let mut a = Array::<Four>::new(EACH);
    let mut b = Array::<Four>::new(EACH);
    #[unroll]
    for index in 0..comptime!(EACH * EACH) {
        product[index] = 0.0f32;
    }
    for chunk in 0..comptime!(tiling.chunks()) {
        let first_channel = chunk * comptime!(4 * tiling.side);
        // Others may still read what is there.
        sync_cube();
        load(left, left_rows, first_channel, &mut operands.left, tiling);
        load(
            right,
            right_rows,
            first_channel,
            &mut operands.right,
            tiling,
        );
        sync_cube();
        for channels in 0..tiling.side {
            #[unroll]
            for i in 0..EACH {
                let stride = comptime!(tiling.stride());
                let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
                let column = UNIT_POS_X as usize + comptime!(i * tiling.side);
                a[i] = operands.left[row * stride + channels];
                b[i] = operands.right[column * stride + channels];
            }
            #[unroll]
            for i in 0..EACH {
                #[unroll]
                for j in 0..EACH {
                    #[unroll]
                    for channel in 0..4usize {
                        product[comptime!(i * EACH + j)] +=
                            a[i].extract(channel) * b[j].extract(channel);
                    }
                }
            }
        }
    }
}

/// Writes a unit's part of a tile where all units can read it, as [`accumulate`] does. Nobody may still read the last.
#[cube]
pub(super) fn share(part: &Array<f32>, weights: &mut Shared<[Four]>, #[comptime] tiling: Tiling) {
    #[unroll]
    for i in 0..EACH {
        let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
        let mut four = Four::new(0.0f32);
        #[unroll]
        for j in 0..EACH {
            four.insert(j, part[comptime!(i * EACH + j)]);
        }
        weights[row * comptime!(tiling.stride()) + UNIT_POS_X as usize] = four;
    }
}

/// Adds `weights · matrix` to `sums`, of which a unit has its rows and some channels. Begins by waiting for all units.
#[cube]
pub(super) fn accumulate<F: Float>(
    weights: &Shared<[Four]>,
    matrix: &Tensor<F>,
    rows: &Rows,
    operands: &mut Operands,
    sums: &mut Array<Four>,
    #[comptime] tiling: Tiling,
) {
    let stride = comptime!(tiling.stride());
    let mut a = Array::<Four>::new(EACH);
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        let first_channel = comptime!(chunk * 4 * tiling.side);
        sync_cube();
        load(matrix, rows, first_channel, &mut operands.right, tiling);
        sync_cube();
        // The columns of one unit, which are `side` apart, are in one four.
        for unit in 0..tiling.side {
            #[unroll]
            for i in 0..EACH {
                let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
                a[i] = weights[row * stride + unit];
            }
            #[unroll]
            for j in 0..EACH {
                let row = unit + comptime!(j * tiling.side);
                let b = operands.right[row * stride + UNIT_POS_X as usize];
                #[unroll]
                for i in 0..EACH {
                    sums[comptime!(chunk * EACH + i)] += Four::new(a[i].extract(j)) * b;
                }
            }
        }
    }
}

/// Zeros for [`accumulate`] to add to.
#[cube]
pub(super) fn zeros(#[comptime] tiling: Tiling) -> Array<Four> {
    let mut sums = Array::<Four>::new(comptime!(tiling.kept()));
    #[unroll]
    for index in 0..comptime!(tiling.kept()) {
        sums[index] = Four::new(0.0f32);
    }
    sums
}

/// Multiplies each of the unit's rows by a number.
#[cube]
pub(super) fn scale_rows(sums: &mut Array<Four>, factors: &Array<f32>, #[comptime] tiling: Tiling) {
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        #[unroll]
        for i in 0..EACH {
            sums[comptime!(chunk * EACH + i)] *= Four::new(factors[i]);
        }
    }
}

/// Writes the unit's rows to `[rows, head_dim]`, of which the tile begins at `first` and the last is before `end`.
#[cube]
pub(super) fn store<F: Float>(
    sums: &Array<Four>,
    output: &mut [F],
    first: usize,
    end: usize,
    #[comptime] tiling: Tiling,
) {
    #[unroll]
    for chunk in 0..comptime!(tiling.chunks()) {
        let channel = 4 * (UNIT_POS_X as usize + comptime!(chunk * tiling.side));
        #[unroll]
        for i in 0..EACH {
            let row = first + UNIT_POS_Y as usize + comptime!(i * tiling.side);
            #[unroll]
            for j in 0..4usize {
                if row < end && channel + j < tiling.head_dim {
                    let value = sums[comptime!(chunk * EACH + i)].extract(j);
                    output[row * tiling.head_dim + channel + j] = F::cast_from(value);
                }
            }
        }
    }
}
