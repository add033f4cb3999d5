//! A driver that runs the kernels on the CPU. `emulator/emulator.hpp` has the threads; this has the memory and the products.
#![expect(
    unsafe_code,
    reason = "kernels are code from elsewhere, and work on addresses"
)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use iota_compute::backend::Form;
use iota_cuda::driver::{
    Address, Argument, Driver, Factors, Launch, Matrix, Multiplication, Ticket,
};
use iota_cuda::{Error, Result, kernels};

/// A card that is not there.
#[derive(Debug)]
pub(crate) struct Emulator {
    kernels: &'static Kernels,
    /// Chooses the order in which threads and blocks run.
    seed: u64,
    /// Bytes of the card's memory.
    room_bytes: usize,
    /// Shared memory that a block may have.
    shared_bytes_max: u32,
    memory: Mutex<Memory>,
}

/// Allocations by their addresses, and what is on its way.
///
/// Work is done when it is asked for. A card may do it much later, while copies go on beside it, so these are shown in the
/// worst light: an upload turns what it will overwrite into NaN at once and becomes visible when it is waited for, if no
/// work may still need what it overwrites; a download takes its bytes when it is waited for.
#[derive(Debug, Default)]
struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    held_bytes: usize,
    /// Pieces of work that were asked for.
    asked: u64,
    /// As many of these the host knows to be done.
    done: u64,
    tickets: BTreeMap<u64, OnItsWay>,
    tickets_given: u64,
}

/// It has a guard before and after it, which nobody may write to; it and its guards start out as NaN, so that what is read
/// and was never written, or does not belong to it, is seen in the results.
#[derive(Debug)]
struct Allocation {
    numbers: Box<[u128]>,
    /// The last piece of work that was given an address in it.
    touched: u64,
}

/// What a ticket stands for.
#[derive(Debug)]
enum OnItsWay {
    /// So many pieces of work.
    Work(u64),
    Upload(Address, Vec<u8>),
    /// From there, so many bytes, behind so many pieces of work.
    Download(Address, usize, u64),
}

impl Memory {
    /// The allocation that an address lies in.
    fn around(&mut self, at: Address) -> &mut Allocation {
        let found = self.allocations.range_mut(..=at.0).next_back();
        found.unwrap_or_else(|| panic!("{at:?} is not allocated")).1
    }

    /// A piece of work that may touch what lies around these addresses.
    fn ask(&mut self, addresses: impl IntoIterator<Item = Address>) {
        self.asked += 1;
        let asked = self.asked;
        for at in addresses {
            self.around(at).touched = asked;
        }
    }

    fn ticket(&mut self, of: OnItsWay) -> Ticket {
        self.tickets_given += 1;
        self.tickets.insert(self.tickets_given, of);
        Ticket(self.tickets_given)
    }

    fn hand_back(&mut self, ticket: Ticket) -> OnItsWay {
        let Ticket(number) = ticket;
        let found = self.tickets.remove(&number);
        found.unwrap_or_else(|| panic!("{number} is no ticket that anybody has"))
    }
}

/// Numbers of 16 bytes on each side of an allocation.
const GUARD: usize = 64;

/// A NaN, as f32, as bf16 and as f64.
const POISON: u128 = u128::MAX;

impl Emulator {
    /// None, with the reason printed, where there is no C++ compiler.
    pub(crate) fn new(seed: u64) -> Option<Arc<Self>> {
        Self::with_room(seed, usize::MAX)
    }

    pub(crate) fn with_room(seed: u64, room_bytes: usize) -> Option<Arc<Self>> {
        Self::with(seed, room_bytes, kernels::SHARED_BYTES_OF_A100)
    }

    pub(crate) fn with_shared_bytes(seed: u64, shared_bytes_max: u32) -> Option<Arc<Self>> {
        Self::with(seed, usize::MAX, shared_bytes_max)
    }

    fn with(seed: u64, room_bytes: usize, shared_bytes_max: u32) -> Option<Arc<Self>> {
        let kernels = Kernels::get()?;
        Some(Arc::new(Self {
            kernels,
            seed,
            room_bytes,
            shared_bytes_max,
            memory: Mutex::default(),
        }))
    }

    /// As [`Driver::launch`], of kernels that only tests have too, with as much shared memory as is said here.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn launch_with(&self, launch: &Launch<'_>, shared_bytes: u32) {
        self.ask(1, launch.arguments.iter().filter_map(address));
        // SAFETY: the caller vouches for the arguments; their kinds are compared with the kernel's.
        unsafe { self.kernels.launch(launch, shared_bytes, self.seed) };
    }

    /// A test that panics gives back what it holds.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Panics
    /// If the bytes are not all of one allocation.
    fn check(&self, what: &str, at: Address, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let memory = self.memory();
        let (start, allocation) = memory
            .allocations
            .range(..=at.0)
            .next_back()
            .unwrap_or_else(|| panic!("{what}: {at:?} is not allocated"));
        let end = start + 16 * (allocation.numbers.len() - 2 * GUARD) as u64;
        assert!(
            at.0 + bytes as u64 <= end,
            "{what}: {bytes} bytes at {at:?} leave their allocation"
        );
    }

    /// Notes a piece of work on so much, if it is on anything.
    fn ask(&self, amount: usize, addresses: impl IntoIterator<Item = Address>) {
        if amount > 0 {
            self.memory().ask(addresses);
        }
    }

    fn check_matrix(
        &self,
        what: &str,
        matrix: &Matrix,
        [rows, columns]: [usize; 2],
        batch: usize,
        element_bytes: usize,
    ) {
        if rows * columns * batch > 0 {
            let last_row = (batch - 1) * matrix.batch_stride + (rows - 1) * matrix.row_stride;
            self.check(what, matrix.address, (last_row + columns) * element_bytes);
        }
    }
}

// SAFETY: kernels and products run within memory that their callers vouch for, which `check` looks after where it can.
unsafe impl Driver for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        let mut memory = self.memory();
        if memory.held_bytes + bytes > self.room_bytes {
            return Err(Error::OutOfMemory {
                bytes: bytes as u64,
                free_bytes: (self.room_bytes - memory.held_bytes) as u64,
            });
        }
        memory.held_bytes += bytes;
        let numbers = vec![POISON; bytes.div_ceil(16) + 2 * GUARD].into_boxed_slice();
        let address = numbers.as_ptr() as u64 + 16 * GUARD as u64;
        let touched = memory.done;
        memory
            .allocations
            .insert(address, Allocation { numbers, touched });
        Ok(Address(address))
    }

    unsafe fn release(&self, address: Address, bytes: usize) {
        let mut memory = self.memory();
        let numbers = memory.allocations.remove(&address.0).unwrap().numbers;
        memory.held_bytes -= bytes;
        memory.done = memory.asked;
        let (before, rest) = numbers.split_at(GUARD);
        let after = &rest[rest.len() - GUARD..];
        let untouched = before.iter().chain(after).all(|number| *number == POISON);
        assert!(
            untouched || std::thread::panicking(),
            "something wrote beside an allocation of {bytes} bytes"
        );
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        self.check("zero", at, bytes);
        self.ask(bytes, [at]);
        // SAFETY: the caller's, and checked.
        unsafe { std::ptr::write_bytes(at.0 as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        self.check("upload", to, from.len());
        self.ask(from.len(), [to]);
        // SAFETY: the caller's, and checked.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.0 as *mut u8, from.len()) };
        Ok(())
    }

    fn mark(&self) -> Result<Ticket> {
        let mut memory = self.memory();
        let asked = memory.asked;
        Ok(memory.ticket(OnItsWay::Work(asked)))
    }

    unsafe fn begin_upload(
        &self,
        to: Address,
        from: &[u8],
        after: Option<Ticket>,
    ) -> Result<Ticket> {
        self.check("begun upload", to, from.len());
        let mut memory = self.memory();
        let after = match after.map(|ticket| memory.hand_back(ticket)) {
            None => memory.done,
            Some(OnItsWay::Work(asked)) => asked.max(memory.done),
            Some(other) => panic!("an upload after {other:?}"),
        };
        let touched = memory.around(to).touched;
        assert!(
            touched <= after,
            "an upload overwrites what work {touched} may still need: it begins after {after}"
        );
        // SAFETY: the caller's, and checked.
        unsafe { std::ptr::write_bytes(to.0 as *mut u8, POISON as u8, from.len()) };
        Ok(memory.ticket(OnItsWay::Upload(to, from.to_vec())))
    }

    fn wait(&self, upload: Ticket) -> Result<()> {
        let given_back = self.memory().hand_back(upload);
        match given_back {
            OnItsWay::Work(_) => Ok(()),
            // SAFETY: whoever began it has said that the bytes are allocated.
            OnItsWay::Upload(to, bytes) => unsafe { self.upload(to, &bytes) },
            OnItsWay::Download(..) => panic!("nobody waits for a download on the card"),
        }
    }

    unsafe fn begin_download(&self, from: Address, bytes: usize) -> Result<Ticket> {
        self.check("begun download", from, bytes);
        let mut memory = self.memory();
        let asked = memory.asked;
        Ok(memory.ticket(OnItsWay::Download(from, bytes, asked)))
    }

    fn finish_download(&self, to: &mut [u8], download: Ticket) -> Result<()> {
        let given_back = self.memory().hand_back(download);
        let OnItsWay::Download(from, bytes, asked) = given_back else {
            panic!("{given_back:?} is no download");
        };
        assert!(to.len() <= bytes, "so many were not asked for");
        self.check("download", from, to.len());
        let mut memory = self.memory();
        memory.done = memory.done.max(asked);
        // SAFETY: whoever began it has said that the bytes are allocated.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<()> {
        self.check("download", from, to.len());
        let mut memory = self.memory();
        memory.done = memory.asked;
        // SAFETY: the caller's, and checked.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.check("copy to", to, bytes);
        self.check("copy from", from, bytes);
        self.ask(bytes, [to, from]);
        // SAFETY: the caller's, and checked.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) };
        Ok(())
    }

    fn shared_bytes_max(&self) -> u32 {
        self.shared_bytes_max
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let shared_bytes = kernels::shared_bytes(launch.kernel);
        let kernel = launch.kernel;
        assert!(
            shared_bytes <= self.shared_bytes_max,
            "{kernel} asks for {shared_bytes} bytes of shared memory"
        );
        // SAFETY: the caller's.
        unsafe { self.launch_with(launch, shared_bytes) };
        Ok(())
    }

    unsafe fn multiply(&self, multiplication: &Multiplication) -> Result<()> {
        let Multiplication {
            product,
            factors,
            out,
            a,
            b,
            batch,
            add,
        } = multiplication;
        let (rows, columns, inner) = (product.rows, product.columns, product.inner);
        let (a_shape, b_shape) = match product.form {
            Form::TransposedRight => ([rows, inner], [columns, inner]),
            Form::Plain => ([rows, inner], [inner, columns]),
            Form::TransposedLeft => ([inner, rows], [inner, columns]),
        };
        let bytes = factors.bytes();
        self.check_matrix("result", out, [rows, columns], *batch, 4);
        self.check_matrix("left factor", a, a_shape, *batch, bytes);
        self.check_matrix("right factor", b, b_shape, *batch, bytes);
        let elements = rows * columns * inner * batch;
        self.ask(elements, [out.address, a.address, b.address]);
        for index in 0..*batch {
            // SAFETY: the caller's, and checked.
            let element = |matrix: &Matrix, row: usize, column: usize| unsafe {
                let place = index * matrix.batch_stride + row * matrix.row_stride + column;
                match factors {
                    Factors::F32 => *(matrix.address.0 as *const f32).add(place),
                    Factors::Bf16 => {
                        let bits = *(matrix.address.0 as *const u16).add(place);
                        f32::from_bits(u32::from(bits) << 16)
                    }
                }
            };
            let mut sums = vec![0.0_f32; columns];
            for row in 0..rows {
                sums.fill(0.0);
                for term in 0..inner {
                    let left = match product.form {
                        Form::TransposedRight | Form::Plain => element(a, row, term),
                        Form::TransposedLeft => element(a, term, row),
                    };
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let right = match product.form {
                            Form::TransposedRight => element(b, column, term),
                            Form::Plain | Form::TransposedLeft => element(b, term, column),
                        };
                        *sum += left * right;
                    }
                }
                // SAFETY: the caller's, and checked.
                let result = unsafe {
                    let start = index * out.batch_stride + row * out.row_stride;
                    let start = (out.address.0 as *mut f32).add(start);
                    std::slice::from_raw_parts_mut(start, columns)
                };
                for (result, sum) in result.iter_mut().zip(&sums) {
                    *result = if *add { *result + sum } else { *sum };
                }
            }
        }
        Ok(())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let memory = self.memory();
        let is_clean = memory.allocations.is_empty() && memory.tickets.is_empty();
        assert!(
            is_clean || std::thread::panicking(),
            "allocations or tickets are left over"
        );
    }
}

/// The kernels, compiled for this machine.
#[derive(Debug)]
struct Kernels {
    library: libloading::Library,
}

type Emulate = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    u32,
    u32,
    *mut *mut c_void,
    *const c_char,
    u64,
    *mut c_char,
    usize,
) -> c_int;

impl Kernels {
    fn get() -> Option<&'static Self> {
        static KERNELS: OnceLock<Option<Kernels>> = OnceLock::new();
        let load = || {
            let path = compiled("kernels", "")?;
            // SAFETY: it was made from the sources here, and does nothing when it is loaded.
            let library = unsafe { libloading::Library::new(path) }.unwrap();
            Some(Self { library })
        };
        KERNELS.get_or_init(load).as_ref()
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch(&self, launch: &Launch<'_>, shared_bytes: u32, seed: u64) {
        let mut arguments = launch.arguments.to_vec();
        let kinds: String = arguments.iter().map(kind).collect();
        let mut pointers: Vec<*mut c_void> = arguments
            .iter_mut()
            .map(|argument| match argument {
                Argument::Address(Address(value)) | Argument::U64(value) => {
                    std::ptr::from_mut(value).cast()
                }
                Argument::U32(value) => std::ptr::from_mut(value).cast(),
                Argument::F32(value) => std::ptr::from_mut(value).cast(),
            })
            .collect();
        let name = CString::new(launch.kernel).unwrap();
        let kinds = CString::new(kinds).unwrap();
        let mut message = [0 as c_char; 256];
        // SAFETY: `emulate` has this type; the caller vouches for what the kernel does with the arguments.
        let failed = unsafe {
            let emulate = self.library.get::<Emulate>(b"emulate").unwrap();
            emulate(
                name.as_ptr(),
                launch.blocks.as_ptr(),
                kernels::THREADS,
                shared_bytes,
                pointers.as_mut_ptr(),
                kinds.as_ptr(),
                seed,
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if failed != 0 {
            // SAFETY: it was terminated there.
            let reason = unsafe { CStr::from_ptr(message.as_ptr()) };
            panic!("{}: {}", launch.kernel, reason.to_string_lossy());
        }
    }
}

/// Null is where a kernel has nothing to do.
fn address(argument: &Argument) -> Option<Address> {
    match argument {
        Argument::Address(address) if address.0 != 0 => Some(*address),
        _ => None,
    }
}

/// As the emulator calls a type.
fn kind(argument: &Argument) -> char {
    match argument {
        Argument::Address(_) => 'p',
        Argument::U32(_) => 'u',
        Argument::U64(_) => 'l',
        Argument::F32(_) => 'f',
    }
}

/// Makes NVIDIA's libraries those of `emulator/driver.hpp`, for the rest of this process. False, with the reason printed,
/// where there is no C++ compiler.
#[cfg(feature = "cuda")]
pub(crate) fn stand_in_for_nvidia() -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    static LOADED: OnceLock<bool> = OnceLock::new();
    *LOADED.get_or_init(|| {
        // Whoever then asks for a library of such a name is given the one that is loaded already.
        ["libcuda.so", "libcublas.so", "libnvrtc.so"]
            .iter()
            .all(|name| {
                let Some(path) = compiled(name, include_str!("emulator/driver.hpp")) else {
                    return false;
                };
                // SAFETY: as for the kernels.
                let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
                std::mem::forget(library.unwrap());
                true
            })
    })
}

/// A library of this name, of the kernels, their emulator and what is added. It is made once: every test is a process of its
/// own. None, with the reason printed, where there is no C++ compiler.
fn compiled(name: &str, added: &str) -> Option<PathBuf> {
    let entries: String = kernels::NAMES
        .iter()
        .chain(&["test_multiply", "test_load"])
        .map(|name| format!("X({name}) "))
        .collect();
    let source = format!(
        "{}\n{}\n{}\n{}\n#define KERNELS(X) {entries}\n{}\n{added}",
        include_str!("emulator/emulator.hpp"),
        include_str!("emulator/tensor.hpp"),
        kernels::SOURCE,
        include_str!("emulator/instructions.hpp"),
        include_str!("emulator/launch.hpp")
    );
    let digest = blake3::hash(source.as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("{name}-{}", &digest[..16]));
    if !path.exists() {
        compile(&source, name, &path)?;
    }
    Some(path)
}

/// As [`compiled`].
fn compile(source: &str, soname: &str, to: &Path) -> Option<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let own = |ending: &str| -> PathBuf {
        let mut name = to.as_os_str().to_owned();
        name.push(format!(".{}.{ending}", std::process::id()));
        name.into()
    };
    let (source_path, library_path) = (own("cpp"), own("so"));
    std::fs::write(&source_path, source).unwrap();
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra"])
        .args(["-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered"])
        .arg(format!("-Wl,-soname,{soname}"))
        .arg("-o")
        .args([&library_path, &source_path])
        .output();
    std::fs::remove_file(&source_path).unwrap();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {compiler}, which would make kernels for the CPU: {error}");
            return None;
        }
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler}: {errors}");
    // Whoever compiles it at the same time makes the same file.
    std::fs::rename(&library_path, to).unwrap();
    Some(())
}
