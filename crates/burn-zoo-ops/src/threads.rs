//! The threads that Flex and, beside it, LibTorch compute on, and what they draw.

use burn::tensor::Device;
#[cfg(feature = "flex")]
use std::{
    cell::Cell,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Runs a program's computing on one of the threads that Flex's kernels share. A kernel that is called from elsewhere wakes
/// one of them and waits; called from one of them, it begins at once and the others join. For a small model, whose kernels
/// take microseconds, that is a tenth of a step and more.
///
/// Other backends do not mind. With a single thread there is nothing to win, and what computes stays where it is: it might
/// wait for work that needs that thread.
///
/// ```
/// let answer = burn_zoo_ops::on_worker(|| 6 * 7);
/// assert_eq!(answer, 42);
/// ```
pub fn on_worker<R: Send>(compute: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "flex")]
    {
        // As large a stack as a program's first thread has. It cannot be set once the threads run, which is no harm.
        let _ = rayon::ThreadPoolBuilder::new()
            .stack_size(STACK)
            .build_global();
        if rayon::current_num_threads() > 1 {
            return rayon::scope(|_| compute());
        }
    }
    compute()
}

/// Keeps the threads that Flex's kernels share awake while `compute` runs, for a tenth of a second at most: what takes
/// longer has kernels that need it less. Else they fall asleep after some microseconds without work, and the system wakes
/// each for its part of the next kernel: of a small model's forward pass, which is a hundred short kernels, that is a quarter.
///
/// ```
/// let device = burn::tensor::Device::flex();
/// assert_eq!(burn_zoo_ops::awake(&device, || 6 * 7), 42);
/// ```
pub fn awake<R>(device: &Device, compute: impl FnOnce() -> R) -> R {
    #[cfg(feature = "flex")]
    let is_flex = matches!(Processor::of(device), Some(Processor::Flex));
    #[cfg(feature = "flex")]
    let _awake = (is_flex && cores(device) > 1).then(Awake::begin);
    let _ = device;
    compute()
}

/// Keeps the threads of a pool awake until it is dropped.
#[cfg(feature = "flex")]
struct Awake {
    is_over: Arc<AtomicBool>,
    /// What holds of this thread outside.
    was_awake: bool,
}

#[cfg(feature = "flex")]
impl Awake {
    /// Nobody waits for the threads: one that is busy with something else, or waits for whoever calls this, comes too late.
    fn begin() -> Self {
        let awake = Self {
            is_over: Arc::new(AtomicBool::new(false)),
            was_awake: IS_AWAKE.replace(true),
        };
        let is_over = awake.is_over.clone();
        let until = Instant::now() + AWAKE;
        rayon::spawn_broadcast(move |_| {
            // Also on the caller's own thread, and on those that are kept awake for somebody else, whose work would wait.
            if IS_AWAKE.replace(true) {
                return;
            }
            while !is_over.load(Ordering::Relaxed) && Instant::now() < until {
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::hint::spin_loop();
                }
            }
            IS_AWAKE.set(false);
        });
        awake
    }
}

#[cfg(feature = "flex")]
impl Drop for Awake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        IS_AWAKE.set(self.was_awake);
    }
}

/// Computes with each of the items, and with a seed for what is drawn meanwhile. On Flex, and on LibTorch's processor beside it,
/// all are computed at once, each on its share of the processor's cores; a core that has work of its own does not wait for
/// others in each operation. Elsewhere, and within one of several things that are computed at once, one follows the other.
///
/// At once, the seeds follow from the generator of the device, and what this crate draws in 32-bit floats follows from them;
/// [`seed`] changes that. Elsewhere the seeds are the numbers of the items.
///
/// ```
/// let device = burn::tensor::Device::flex();
/// let squares = burn_zoo_ops::at_once(&device, vec![1, 2, 3], |_, number| number * number);
/// assert_eq!(squares, [1, 4, 9]);
/// ```
pub fn at_once<T: Send, R: Send>(
    device: &Device,
    items: Vec<T>,
    compute: impl Fn(u64, T) -> R + Sync,
) -> Vec<R> {
    #[cfg(feature = "flex")]
    if items.len() > 1
        && cores(device) > 0
        && let Some(processor) = Processor::of(device)
    {
        let pools = Pools::take(items.len());
        let seeds: Vec<u64> = items.iter().map(|_| processor.draw()).collect();
        let _as_before = processor.threads();
        let compute = |seed, item| {
            processor.use_threads(rayon::current_num_threads());
            compute(seed, item)
        };
        let compute = &compute;
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let jobs = items.into_iter().zip(seeds).zip(&mut results);
        let jobs = jobs.map(|((item, seed), result)| {
            move || *result = Some(with_stream(seed, || compute(seed, item)))
        });
        in_pools(&pools.0, jobs);
        return results.into_iter().flatten().collect();
    }
    let items = items.into_iter().enumerate();
    let results = items.map(|(number, item)| compute(number as u64, item));
    awake(device, || results.collect())
}

/// Runs each job in a pool of its own, and waits for all. Threads that were made for it and ended with it would each leave some
/// memory behind where LibTorch is linked.
#[cfg(feature = "flex")]
fn in_pools<'scope, J: FnOnce() + Send + 'scope>(
    pools: &'scope [rayon::ThreadPool],
    mut jobs: impl Iterator<Item = J>,
) {
    if let Some((pool, rest)) = pools.split_first()
        && let Some(job) = jobs.next()
    {
        pool.in_place_scope(|scope| {
            scope.spawn(|_| job());
            in_pools(rest, jobs);
        });
    }
}

/// On how many cores things can be computed [`at_once`] with a device. None where one follows the other.
pub fn cores(device: &Device) -> usize {
    #[cfg(feature = "flex")]
    if STREAM.get().is_none() && Processor::of(device).is_some() {
        return rayon::current_num_threads();
    }
    let _ = device;
    0
}

/// Seeds what is drawn from a device: by this thread, where it computes one of several things [`at_once`].
pub fn seed(device: &Device, seed: u64) {
    #[cfg(feature = "flex")]
    if STREAM.get().is_some() && Processor::of(device).is_some() {
        STREAM.set(Some(seed));
        return;
    }
    device.seed(seed);
}

/// Whether this thread computes one of several things at once, with draws of its own.
#[cfg(all(feature = "flex", feature = "libtorch"))]
pub(crate) fn has_stream() -> bool {
    STREAM.get().is_some()
}

/// The same on a single thread.
#[cfg(all(feature = "flex", feature = "libtorch"))]
pub(crate) fn is_alone() -> bool {
    has_stream() && rayon::current_num_threads() == 1
}

/// What computes in the processor's memory when a thread calls it.
#[cfg(feature = "flex")]
#[derive(Clone, Copy)]
enum Processor {
    Flex,
    #[cfg(feature = "libtorch")]
    LibTorch,
}

#[cfg(feature = "flex")]
impl Processor {
    fn of(device: &Device) -> Option<Self> {
        let device = device.clone().without_autodiff();
        if device == Device::flex() {
            return Some(Self::Flex);
        }
        #[cfg(feature = "libtorch")]
        if device == crate::libtorch::processor() {
            return Some(Self::LibTorch);
        }
        None
    }

    /// Random bits of its generator.
    fn draw(self) -> u64 {
        match self {
            Self::Flex => draw(),
            #[cfg(feature = "libtorch")]
            Self::LibTorch => crate::libtorch::draw(),
        }
    }

    /// Has it compute with as many threads of its own as in the beginning, once what is returned is dropped.
    fn threads(self) -> impl Drop {
        struct AsBefore(Processor, usize);
        impl Drop for AsBefore {
            fn drop(&mut self) {
                self.0.use_threads(self.1);
            }
        }
        let count = match self {
            Self::Flex => 0,
            #[cfg(feature = "libtorch")]
            Self::LibTorch => crate::libtorch::threads(),
        };
        AsBefore(self, count)
    }

    /// Has it compute with as many of its own from now on when this thread calls it. Flex has those of the pool.
    fn use_threads(self, count: usize) {
        match self {
            Self::Flex => _ = count,
            #[cfg(feature = "libtorch")]
            Self::LibTorch => tch::set_num_threads(count as i32),
        }
    }
}

#[cfg(feature = "flex")]
const STACK: usize = 8 << 20;

#[cfg(feature = "flex")]
const AWAKE: Duration = Duration::from_millis(100);

#[cfg(feature = "flex")]
thread_local! {
    /// Where this thread's own draws stand, if it has any.
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
    /// Whether this thread is kept awake, or keeps others so.
    static IS_AWAKE: Cell<bool> = const { Cell::new(false) };
}

#[cfg(feature = "flex")]
fn with_stream<R>(seed: u64, compute: impl FnOnce() -> R) -> R {
    struct Restore(Option<u64>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STREAM.set(self.0);
        }
    }
    let _restore = Restore(STREAM.replace(Some(seed)));
    compute()
}

/// Random bits: of this thread's own draws, or of Flex's generator (SplitMix64: Steele, Lea and Flood 2014).
#[cfg(feature = "flex")]
pub(crate) fn draw() -> u64 {
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::{DType, Distribution, Shape};
    use burn_flex::{Flex, FlexDevice};

    let Some(state) = STREAM.get() else {
        let uniform = Distribution::Uniform(0.0, 1.0);
        let drawn = Flex::float_random(Shape::new([2]), uniform, &FlexDevice, DType::F32.into());
        // 24 random bits of each.
        let bits = |which: usize| (drawn.storage::<f32>()[which] * 2f32.powi(24)) as u64;
        return bits(0) << 32 | bits(1);
    };
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STREAM.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Pools of threads that share the processor's cores, for one caller at a time.
#[cfg(feature = "flex")]
struct Pools(Vec<rayon::ThreadPool>);

/// Those that were used last.
#[cfg(feature = "flex")]
static IDLE: std::sync::Mutex<Vec<rayon::ThreadPool>> = std::sync::Mutex::new(Vec::new());

#[cfg(feature = "flex")]
impl Pools {
    fn take(count: usize) -> Self {
        let idle = std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner));
        if idle.len() == count {
            return Self(idle);
        }
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |_| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .stack_size(STACK)
                .build()
                .expect("the system has threads to give")
        };
        Self((0..count).map(pool).collect())
    }
}

#[cfg(feature = "flex")]
impl Drop for Pools {
    fn drop(&mut self) {
        let used = std::mem::take(&mut self.0);
        *IDLE.lock().unwrap_or_else(PoisonError::into_inner) = used;
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn total(count: u64) -> u64 {
        (0..count).into_par_iter().sum()
    }

    /// From outside and on a worker, several at a time and one within another.
    #[test]
    fn what_is_computed_awake_is_the_same() {
        let device = Device::flex();
        let work = || {
            awake(&device, || total(1000) + awake(&device, || total(100)))
                + awake(&device, || total(10))
        };
        let expected = 499_500 + 4950 + 45;
        assert_eq!(on_worker(work), expected);
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..50).map(|_| work()).collect::<Vec<_>>()))
                .collect();
            for thread in running {
                assert_eq!(thread.join().unwrap(), vec![expected; 50]);
            }
        });
    }

    /// Who computes does not wait for a thread that waits for them.
    #[test]
    fn a_waiting_worker_is_not_waited_for() {
        let device = Device::flex();
        let found = on_worker(|| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| awake(&device, || 6 * 7));
                other.join().unwrap()
            })
        });
        assert_eq!(found, 42);
    }

    #[test]
    fn a_panic_lets_the_threads_go() {
        let awake = Awake::begin();
        let is_over = awake.is_over.clone();
        assert!(IS_AWAKE.get() && !is_over.load(Ordering::Relaxed));
        let result = std::panic::catch_unwind(move || {
            let _awake = awake;
            panic!("as planned")
        });
        assert!(result.is_err());
        assert!(!IS_AWAKE.get() && is_over.load(Ordering::Relaxed));
        assert_eq!(on_worker(|| total(10)), 45);
    }
}
