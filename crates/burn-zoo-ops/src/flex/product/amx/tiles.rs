//! The tile unit: whether it is there, its configuration, and a block of a product.

use std::arch::{
    asm,
    x86_64::{__cpuid_count, _MM_HINT_T1, _mm_prefetch},
};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

use super::super::{Matrix, Start};
use super::unit::Unit;

/// Rows and columns of a block: two tiles of 16.
pub(super) const LINES: usize = 32;

/// Products that a step sums: the width of a tile of bfloat16 numbers.
pub(super) const DEPTH: usize = 32;

/// So many bytes of what comes next are brought nearer in each step.
pub(super) const AHEAD: usize = 768;

/// So many rows of the target are brought nearer in each step.
const FETCHED: usize = 3;

/// What one step reads of a panel of [`LINES`]: for each piece of its numbers, two tiles.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Step(pub(super) [[[[u32; 16]; 16]; 2]; 3]);

/// That the processor has tiles, and that this process may use them.
#[derive(Clone, Copy)]
pub(super) struct Tiles(());

impl Tiles {
    /// Not with `BURN_ZOO_TILES=off`.
    pub(super) fn of_this_processor() -> Option<Self> {
        static HAS: LazyLock<bool> = LazyLock::new(|| {
            let has = |bits: u32| __cpuid_count(7, 0).edx & bits == bits;
            let vectors = is_x86_feature_detected!("avx512f");
            let is_wanted = std::env::var_os("BURN_ZOO_TILES").is_none_or(|value| value != "off");
            // AMX-BF16 and AMX-TILE; then Linux has to be asked for the registers, once for all threads.
            is_wanted && vectors && has((1 << 22) | (1 << 24)) && is_permitted()
        });
        HAS.then_some(Self(()))
    }

    /// Tells the unit the sizes of the tiles, until what is returned goes.
    pub(super) fn configured(self) -> Configured {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            first_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration = Configuration {
            palette: 1,
            first_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(16);
        // SAFETY: the unit is there, and the configuration is one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack)) };
        Configured(PhantomData)
    }
}

/// Asks Linux for the registers of tiles (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
fn is_permitted() -> bool {
    // SAFETY: it changes nothing else.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
}

/// The unit as this thread has configured it.
pub(super) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the unit is there.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

impl Configured {
    /// `target = start + left · right`, of `rows` and `columns` up to [`LINES`]. Meanwhile a step that comes `soon` is brought into
    /// the first cache in each step, and of what comes later, `ahead`, a part into the second.
    ///
    /// The sum is whole before it is added to a target, so that one of many such has few roundings.
    ///
    /// # Safety
    ///
    /// The panels have `steps` steps, at least one, and nobody else uses this block of the target.
    #[allow(clippy::too_many_arguments)]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply(
        &self,
        [left, right, soon]: [*const Step; 3],
        ahead: *const u8,
        steps: usize,
        target: Matrix,
        [rows, columns]: [usize; 2],
        start: Start,
    ) {
        let is_whole = [rows, columns] == [LINES; 2];
        let mut first = [0.0; LINES];
        if let Start::Row(row) = start {
            first[..columns].copy_from_slice(row);
        }
        let first = first.as_ptr();
        // The loop fetches the first ones itself.
        for row in (FETCHED * steps).min(rows)..rows {
            let row = target.skip(row, 0);
            for column in [0, 16] {
                _mm_prefetch::<_MM_HINT_T1>(row.skip(0, column).values.cast());
            }
        }
        let operands = [left.cast(), right.cast(), soon.cast(), ahead];
        if is_whole && !matches!(start, Start::Target) {
            // SAFETY: as promised.
            return unsafe { self.sum(operands, steps, first, target, target) };
        }
        let mut block = MaybeUninit::<Unit>::uninit();
        let values = block.as_mut_ptr().cast();
        // SAFETY: the block is as large as it should be, and written then; and as promised.
        let block = unsafe {
            let room = Matrix {
                values,
                strides: [LINES as isize, 1],
            };
            self.sum(operands, steps, first, room, target);
            block.assume_init_ref()
        };
        for (row, values) in block.0[..rows].iter().enumerate() {
            let target = target.skip(row, 0).values;
            // SAFETY: the target's row has these columns, and is written where it is added to.
            unsafe {
                match start {
                    Start::Target => std::slice::from_raw_parts_mut(target, columns)
                        .iter_mut()
                        .zip(values)
                        .for_each(|(sum, more)| *sum += more),
                    Start::Row(_) | Start::Zero => {
                        target.copy_from_nonoverlapping(values.as_ptr(), columns)
                    }
                }
            }
        }
    }

    /// Sums in a block all of whose rows begin as `first`, and writes it to `target`. Where it goes at last, [`FETCHED`] rows are
    /// brought nearer in each step: all at once before, they would be in the way of the first tiles.
    unsafe fn sum(
        &self,
        [left, right, soon, ahead]: [*const u8; 4],
        steps: usize,
        first: *const f32,
        target: Matrix,
        last: Matrix,
    ) {
        let bytes = |matrix: Matrix| 4 * matrix.strides[0];
        // Four tiles are the block's sums, two have pieces of the left side's rows, and two of the right side's columns.
        // Small products come first, and from one to the next of them one side stays.
        // Four at a time, the lines of a tile that is read soon come into the first cache.
        macro_rules! fetch {
            ($tile:literal, $line:literal) => {
                concat!(
                    "\n.irp further, 0, 64, 128, 192\n",
                    "prefetcht0 [{soon} + {tile} * ",
                    $tile,
                    " + 64 * ",
                    $line,
                    " + \\further]\n.endr\n"
                )
            };
        }
        macro_rules! multiply {
            (fetch $tile:literal) => {
                concat!(
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    fetch!($tile, "0"),
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    fetch!($tile, "4"),
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    fetch!($tile, "8"),
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    fetch!($tile, "12"),
                )
            };
        }
        macro_rules! load {
            ($low:literal, $high:literal, $side:literal, $piece:literal) => {
                concat!(
                    "tileloadd ",
                    $low,
                    ", [{",
                    $side,
                    "} + {row} + {piece} * ",
                    $piece,
                    "]\n",
                    "tileloadd ",
                    $high,
                    ", [{",
                    $side,
                    "} + {row} + {piece} * ",
                    $piece,
                    " + {tile}]"
                )
            };
        }
        macro_rules! left {
            ($piece:literal) => {
                load!("tmm4", "tmm5", "left", $piece)
            };
        }
        macro_rules! right {
            ($piece:literal) => {
                load!("tmm6", "tmm7", "right", $piece)
            };
        }
        // SAFETY: the unit is configured; the panels have these steps, and the blocks are there.
        unsafe {
            asm!(
                "tileloadd tmm0, [{first} + {none}]",
                "tileloadd tmm1, [{first} + {none} + 64]",
                "tileloadd tmm2, [{first} + {none}]",
                "tileloadd tmm3, [{first} + {none} + 64]",
                "2:",
                "prefetcht1 [{ahead} + 0]", "prefetcht1 [{ahead} + 64]", "prefetcht1 [{below}]",
                left!("2"), right!("0"), multiply!(fetch "0"),
                "prefetcht1 [{ahead} + 128]", "prefetcht1 [{ahead} + 192]", "prefetcht1 [{below} + 64]",
                left!("1"), multiply!(fetch "1"),
                "add {below}, {below_stride}",
                "prefetcht1 [{ahead} + 256]", "prefetcht1 [{ahead} + 320]", "prefetcht1 [{below}]",
                right!("1"), multiply!(fetch "2"),
                "prefetcht1 [{ahead} + 384]", "prefetcht1 [{ahead} + 448]", "prefetcht1 [{below} + 64]",
                left!("0"), multiply!(fetch "3"),
                "add {below}, {below_stride}",
                "prefetcht1 [{ahead} + 512]", "prefetcht1 [{ahead} + 576]", "prefetcht1 [{below}]",
                right!("2"), multiply!(fetch "4"),
                "prefetcht1 [{ahead} + 640]", "prefetcht1 [{ahead} + 704]", "prefetcht1 [{below} + 64]",
                right!("0"), multiply!(fetch "5"),
                "add {below}, {below_stride}",
                "add {left}, {step}",
                "add {right}, {step}",
                "add {soon}, {step}",
                "add {ahead}, {further}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{target} + {target_stride}], tmm0",
                "tilestored [{target} + {target_stride} + 64], tmm1",
                "tilestored [{target_below} + {target_stride}], tmm2",
                "tilestored [{target_below} + {target_stride} + 64], tmm3",
                left = inout(reg) left => _,
                right = inout(reg) right => _,
                steps = inout(reg) steps => _,
                ahead = inout(reg) ahead => _,
                soon = inout(reg) soon => _,
                row = in(reg) 64usize,
                first = in(reg) first,
                none = in(reg) 0usize,
                target = in(reg) target.values,
                target_below = in(reg) target.skip(16, 0).values,
                target_stride = in(reg) bytes(target),
                below = inout(reg) last.values => _,
                below_stride = in(reg) bytes(last),
                tile = const size_of::<Step>() / 6,
                piece = const size_of::<Step>() / 3,
                step = const size_of::<Step>(),
                further = const AHEAD,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
