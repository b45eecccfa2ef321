//! Workgroups that share a row of values, sized by what the device has, and what their units do together.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{calculate_cube_count_elemwise, client::Client, features::Plane, prelude::*};

/// Units of a workgroup at most: the more there are, the longer they wait for each other.
const MOST_UNITS: u32 = 256;
/// Values of a row that one unit takes before another one pays.
const VALUES_PER_UNIT: usize = 4;

/// What the code of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Workgroup {
    /// A power of two.
    pub(super) units: usize,
    /// Whether the units of a plane can add up without shared memory.
    pub(super) has_planes: bool,
}

impl Workgroup {
    /// Shares rows of `width` values.
    pub(super) fn of_row(client: &Client, width: usize) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        let most = MOST_UNITS.min(hardware.max_units_per_cube.min(hardware.max_cube_dim.0));
        let wanted = width.div_ceil(VALUES_PER_UNIT).min(MOST_UNITS as usize) as u32;
        // With fewer than a plane has, some of it would idle.
        let wanted = wanted.next_power_of_two().max(hardware.plane_size_max);
        // Where planes are of several sizes, which one a kernel gets is up to the driver.
        let are_one_size = hardware.plane_size_min == hardware.plane_size_max;
        Self {
            units: 1 << wanted.min(most).ilog2(),
            has_planes: are_one_size && properties.features.plane.contains(Plane::Ops),
        }
    }

    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// A workgroup for each row, and some more where one dimension of the grid does not hold them.
pub(super) fn one_each(client: &Client, rows: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, rows, CubeDim::new_1d(1))
}

/// A tensor beside another one, to be written.
pub(super) fn empty(beside: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    empty_device_contiguous_dtype(client, device, shape, dtype)
}

/// The type of a tensor's values, for a kernel.
pub(super) fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

/// How two values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Combination {
    Sum,
    Largest,
}

#[cube]
fn combined(a: f32, b: f32, #[comptime] how: Combination) -> f32 {
    if comptime!(how == Combination::Sum) {
        a + b
    } else {
        a.max(b)
    }
}

#[cube]
fn of_plane(value: f32, #[comptime] how: Combination) -> f32 {
    if comptime!(how == Combination::Sum) {
        plane_sum(value)
    } else {
        plane_max(value)
    }
}

/// The sum over all units, which each of them gets. `shared` holds a value for each.
#[cube]
pub(super) fn sum(value: f32, shared: &mut Shared<[f32]>, #[comptime] group: Workgroup) -> f32 {
    of_all(value, shared, comptime!(Combination::Sum), group)
}

/// The largest value of all units, which each of them gets.
#[cube]
pub(super) fn max(value: f32, shared: &mut Shared<[f32]>, #[comptime] group: Workgroup) -> f32 {
    of_all(value, shared, comptime!(Combination::Largest), group)
}

/// What the values of all units are combined to.
#[cube]
fn of_all(
    value: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] how: Combination,
    #[comptime] group: Workgroup,
) -> f32 {
    let parts = if comptime!(group.has_planes) {
        let part = of_plane(value, how);
        share_of_plane(part, shared)
    } else {
        shared[UNIT_POS as usize] = value;
        sync_cube();
        let mut half = CUBE_DIM / 2;
        while half > 0 {
            if UNIT_POS < half {
                let other = shared[(UNIT_POS + half) as usize];
                let own = shared[UNIT_POS as usize];
                shared[UNIT_POS as usize] = combined(own, other, how);
            }
            sync_cube();
            half /= 2;
        }
        1u32.runtime()
    };
    let mut whole = shared[0];
    for part in 1..parts {
        whole = combined(whole, shared[part as usize], how);
    }
    // Only now may the next one write over this.
    sync_cube();
    whole
}

/// Shows all units what each plane has, and returns how many planes there are.
#[cube]
fn share_of_plane(value: f32, shared: &mut Shared<[f32]>) -> u32 {
    if UNIT_POS_PLANE == 0 {
        shared[PLANE_POS as usize] = value;
    }
    sync_cube();
    CUBE_DIM.div_ceil(PLANE_DIM)
}
