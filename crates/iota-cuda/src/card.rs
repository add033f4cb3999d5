//! A real card: the driver, cuBLAS, one stream of work, and one of copies each way.
//!
//! NVIDIA's libraries are loaded when a card is opened, by name: `libcuda` (the driver), `libcublas`, and `libnvrtc` unless
//! compiled kernels are given. Nothing else of CUDA is used, so a program with this in it starts anywhere.
#![expect(
    unsafe_code,
    reason = "the driver and its libraries are called through C"
)]

mod kernels;
mod staging;
mod tickets;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::{from_mut, from_ref};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::cublas::{result as cublas, sys as cublas_sys};
use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::{DriverError, result as driver, sys as driver_sys};
use iota_compute::backend::Form;

use self::staging::Staging;
use self::tickets::Tickets;
use crate::driver::{Address, Argument, Driver, Factors, Launch, Multiplication, Ticket};
use crate::error::{Error, Result};
use crate::kernels::{NAMES, THREADS, shared_bytes};

/// A card's memory, kernels and streams. Dropped, it gives everything back.
pub struct Card {
    info: CardInfo,
    context: driver_sys::CUcontext,
    device: driver_sys::CUdevice,
    module: driver_sys::CUmodule,
    kernels: HashMap<&'static str, driver_sys::CUfunction>,
    /// All work, and the copies that are part of it.
    stream: driver_sys::CUstream,
    /// Copies that were begun, beside the work. Two streams, because one that waits for its turn holds up what is behind it,
    /// and because a card has an engine for each direction.
    uploads: driver_sys::CUstream,
    downloads: driver_sys::CUstream,
    cublas: cublas_sys::cublasHandle_t,
    /// What cuBLAS works in: with memory of its own it would not be deterministic.
    workspace: driver_sys::CUdeviceptr,
    /// Whoever holds it may use the streams and cuBLAS.
    desk: Mutex<Desk>,
}

/// What only one caller at a time may use.
struct Desk {
    staging: Staging,
    tickets: Tickets,
}

/// What the driver says of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardInfo {
    /// From 0.
    pub ordinal: usize,
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability: 8.0 is A100, 9.0 is H100.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Shared memory that a block may have.
    pub shared_bytes: u32,
    /// Highest version of CUDA that the driver knows, times 1,000.
    pub driver_version: u32,
}

impl fmt::Display for CardInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        let gib = self.memory_bytes as f64 / f64::from(1_u32 << 30);
        write!(
            f,
            "cuda:{} {}, compute capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB, driver for CUDA {}.{}",
            self.ordinal,
            self.name,
            self.multiprocessors,
            self.driver_version / 1000,
            self.driver_version % 1000 / 10
        )
    }
}

/// cuBLAS's advice for Hopper; enough for Ampere.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The least that the kernels, and bf16 products, are made for.
const CAPABILITY_MIN: (u32, u32) = (8, 0);

// SAFETY: contexts, modules, streams and handles may be used from any thread: of the driver's calls each first makes the
// context current, and what must not run at once is behind the lock.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Card {
    /// Opens a card, counted from 0. `compiled`: a folder with kernels that `check_kernels.py --save` made; without one, or
    /// if it has none for this card and these sources, they are compiled here, which takes a second or two.
    ///
    /// # Errors
    /// [`Error::Library`] where there is no driver, no cuBLAS, or no NVRTC to compile with; [`Error::NoSuchCard`],
    /// [`Error::TooOld`], [`Error::Compile`], [`Error::OutOfMemory`], [`Error::Call`].
    pub fn open(ordinal: usize, compiled: Option<&Path>) -> Result<Arc<Self>> {
        let (device, info) = find(ordinal)?;
        if info.capability < CAPABILITY_MIN {
            let (major, minor) = info.capability;
            let name = info.name;
            return Err(Error::TooOld { name, major, minor });
        }
        // SAFETY: it only looks for the library.
        if !unsafe { cublas_sys::is_culib_present() } {
            return Err(Error::Library {
                library: "libcublas",
                of: "part of CUDA's toolkit, and on PyPI as nvidia-cublas; LD_LIBRARY_PATH may name its folder",
            });
        }
        let image = kernels::image(info.capability, compiled)?;
        // SAFETY: the device is one that the driver has shown; the context stays until it is released below or on drop.
        unsafe {
            let context = driver::primary_ctx::retain(device).call("cuDevicePrimaryCtxRetain")?;
            Self::start(info, device, context, &image).inspect_err(|_| {
                // What has been made in it goes with it.
                let _ = driver::primary_ctx::release(device);
            })
        }
    }

    /// # Safety
    /// The context is the device's, and retained for what is returned.
    unsafe fn start(
        info: CardInfo,
        device: driver_sys::CUdevice,
        context: driver_sys::CUcontext,
        image: &[u8],
    ) -> Result<Arc<Self>> {
        // SAFETY: the context is there; the image is one that the compiler made; what is made here belongs to the context.
        unsafe {
            driver::ctx::set_current(context).call("cuCtxSetCurrent")?;
            let module =
                driver::module::load_data(image.as_ptr().cast()).call("cuModuleLoadData")?;
            let mut kernels = HashMap::new();
            for name in NAMES {
                let c_name = CString::new(*name).expect("names have no zeros");
                let kernel =
                    driver::module::get_function(module, c_name).call("cuModuleGetFunction")?;
                let shared_bytes = shared_bytes(name);
                if (1..=info.shared_bytes).contains(&shared_bytes) {
                    // More than 48 KiB are refused of a kernel that has not been promised them.
                    driver::function::set_function_attribute(
                        kernel,
                        driver_sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        to_c(shared_bytes as usize),
                    )
                    .call("cuFuncSetAttribute")?;
                }
                kernels.insert(*name, kernel);
            }
            let stream = || driver::stream::create(StreamKind::NonBlocking).call("cuStreamCreate");
            let (stream, uploads, downloads) = (stream()?, stream()?, stream()?);
            let workspace = allocate(WORKSPACE_BYTES)?;
            let handle = cublas::create_handle().call("cublasCreate")?;
            cublas::set_stream(handle, stream.cast()).call("cublasSetStream")?;
            cublas_sys::cublasSetWorkspace_v2(handle, workspace as *mut c_void, WORKSPACE_BYTES)
                .result()
                .call("cublasSetWorkspace")?;
            Ok(Arc::new(Self {
                info,
                context,
                device,
                module,
                kernels,
                stream,
                uploads,
                downloads,
                cublas: handle,
                workspace,
                desk: Mutex::new(Desk {
                    staging: Staging::new()?,
                    tickets: Tickets::default(),
                }),
            }))
        }
    }

    /// What the driver says of it.
    pub const fn info(&self) -> &CardInfo {
        &self.info
    }

    /// Memory that nobody has taken.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn free_bytes(&self) -> Result<u64> {
        let _desk = self.enter()?;
        let (free, _) = driver::mem_get_info().call("cuMemGetInfo")?;
        Ok(free as u64)
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// [`Error::Call`]: errors of kernels show here, or in the next download.
    pub fn synchronize(&self) -> Result<()> {
        let _desk = self.enter()?;
        // SAFETY: the streams are there as long as the card is.
        unsafe { self.synchronize_streams() }
    }

    /// # Safety
    /// The context is current.
    unsafe fn synchronize_streams(&self) -> Result<()> {
        for stream in [self.stream, self.uploads, self.downloads] {
            // SAFETY: the streams are there as long as the card is.
            unsafe { driver::stream::synchronize(stream) }.call("cuStreamSynchronize")?;
        }
        Ok(())
    }

    /// Makes the card current on this thread, for as long as the lock is held.
    fn enter(&self) -> Result<MutexGuard<'_, Desk>> {
        let desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context is retained as long as the card is there.
        unsafe { driver::ctx::set_current(self.context) }.call("cuCtxSetCurrent")?;
        Ok(desk)
    }
}

// SAFETY: every call names only the memory that its caller names.
unsafe impl Driver for Card {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        let _desk = self.enter()?;
        // SAFETY: the context is current.
        unsafe { allocate(bytes) }.map(Address)
    }

    unsafe fn release(&self, address: Address, _: usize) {
        let Ok(_desk) = self.enter() else {
            return;
        };
        // An error here is one of an earlier call, which the next one reports.
        // SAFETY: it came from `allocate`, and nothing is under way any more that has it.
        unsafe {
            let _ = self.synchronize_streams();
            let _ = driver::free_sync(address.0);
        }
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        let _desk = self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { driver::memset_d8_async(at.0, 0, bytes, self.stream) }.call("cuMemsetD8Async")
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.enter()?.staging.upload(self.stream, to.0, from) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.enter()?.staging.download(self.stream, to, from.0) }
    }

    fn mark(&self) -> Result<Ticket> {
        // SAFETY: the stream is there as long as the card is.
        unsafe { self.enter()?.tickets.mark(self.stream) }
    }

    unsafe fn begin_upload(
        &self,
        to: Address,
        from: &[u8],
        after: Option<Ticket>,
    ) -> Result<Ticket> {
        let mut desk = self.enter()?;
        // SAFETY: the caller's; the stream is there as long as the card is.
        unsafe {
            if let Some(after) = after {
                desk.tickets.wait(self.uploads, after)?;
            }
            desk.staging.upload(self.uploads, to.0, from)?;
            desk.tickets.mark(self.uploads)
        }
    }

    fn wait(&self, upload: Ticket) -> Result<()> {
        // SAFETY: the stream is there as long as the card is.
        unsafe { self.enter()?.tickets.wait(self.stream, upload) }
    }

    unsafe fn begin_download(&self, from: Address, bytes: usize) -> Result<Ticket> {
        let mut desk = self.enter()?;
        // SAFETY: the caller's; the pinned memory has room for as many, and is nobody else's until its ticket is back and the
        // copy over.
        unsafe {
            let pinned = desk.tickets.pinned(bytes)?;
            desk.tickets.join(self.downloads, self.stream)?;
            let to: &mut [u8] = std::slice::from_raw_parts_mut(pinned.memory.cast(), bytes);
            driver::memcpy_dtoh_async(to, from.0, self.downloads).call("cuMemcpyDtoHAsync")?;
            desk.tickets.mark_download(self.downloads, pinned)
        }
    }

    fn finish_download(&self, to: &mut [u8], download: Ticket) -> Result<()> {
        let given = self.enter()?.tickets.take(download);
        let pinned = given.pinned.as_ref();
        let pinned = pinned.expect("the ticket is one of a download");
        assert!(to.len() <= pinned.bytes, "more than was asked for");
        // Without the lock: what is waited for may take long, and others may ask for more meanwhile.
        // SAFETY: event and memory are nobody else's until they are put back; the copy is over once its event has come.
        let done = unsafe { driver::event::synchronize(given.event) }.call("cuEventSynchronize");
        if done.is_ok() {
            // SAFETY: as above.
            let arrived =
                unsafe { std::slice::from_raw_parts(pinned.memory.cast_const().cast(), to.len()) };
            to.copy_from_slice(arrived);
        }
        self.enter()?.tickets.put_back(given);
        done
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        let _desk = self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { driver::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .call("cuMemcpyDtoDAsync")
    }

    fn shared_bytes_max(&self) -> u32 {
        self.info.shared_bytes
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let _desk = self.enter()?;
        let kernel = self.kernels[launch.kernel];
        let mut arguments = launch.arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(pointer).collect();
        let [x, y] = launch.blocks;
        // SAFETY: the caller vouches for the arguments; the driver copies them before it returns.
        unsafe {
            driver::launch_kernel(
                kernel,
                (x, y, 1),
                (THREADS, 1, 1),
                shared_bytes(launch.kernel),
                self.stream,
                &mut pointers,
            )
        }
        .call("cuLaunchKernel")
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
        if product.rows * product.columns * batch == 0 {
            return Ok(());
        }
        let _desk = self.enter()?;
        // cuBLAS's matrices are column-major: read so, each of ours is its transpose, and out^T = b^T a^T.
        use cublas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let (of_b, of_a) = match product.form {
            Form::TransposedRight => (CUBLAS_OP_T, CUBLAS_OP_N),
            Form::Plain => (CUBLAS_OP_N, CUBLAS_OP_N),
            Form::TransposedLeft => (CUBLAS_OP_N, CUBLAS_OP_T),
        };
        let element = match factors {
            Factors::F32 => cublas_sys::cudaDataType::CUDA_R_32F,
            Factors::Bf16 => cublas_sys::cudaDataType::CUDA_R_16BF,
        };
        let (alpha, beta) = (1.0_f32, if *add { 1.0_f32 } else { 0.0 });
        // SAFETY: the caller's; the numbers are read before the call returns.
        unsafe {
            cublas::gemm_strided_batched_ex(
                self.cublas,
                of_b,
                of_a,
                to_c(product.columns),
                to_c(product.rows),
                to_c(product.inner),
                from_ref(&alpha).cast(),
                b.address.0 as *const c_void,
                element,
                to_c(b.row_stride),
                b.batch_stride as i64,
                a.address.0 as *const c_void,
                element,
                to_c(a.row_stride),
                a.batch_stride as i64,
                from_ref(&beta).cast(),
                out.address.0 as *mut c_void,
                cublas_sys::cudaDataType::CUDA_R_32F,
                to_c(out.row_stride),
                out.batch_stride as i64,
                to_c(*batch),
                cublas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .call("cublasGemmStridedBatchedEx")
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // Errors would be those of earlier calls, and nobody is left to hear of them.
        // SAFETY: buffers and operations hold the card, so nothing of it is in use any more.
        unsafe {
            let _ = driver::ctx::set_current(self.context);
            let _ = self.synchronize_streams();
            let desk = self.desk.get_mut();
            let desk = desk.unwrap_or_else(PoisonError::into_inner);
            desk.staging.release();
            desk.tickets.release();
            let _ = cublas::destroy_handle(self.cublas);
            let _ = driver::free_sync(self.workspace);
            for stream in [self.stream, self.uploads, self.downloads] {
                let _ = driver::stream::destroy(stream);
            }
            let _ = driver::module::unload(self.module);
            let _ = driver::primary_ctx::release(self.device);
        }
    }
}

fn find(ordinal: usize) -> Result<(driver_sys::CUdevice, CardInfo)> {
    // SAFETY: it only looks for the library.
    if !unsafe { driver_sys::is_culib_present() } {
        return Err(Error::Library {
            library: "libcuda",
            of: "NVIDIA's driver",
        });
    }
    let cards = match driver::init() {
        Ok(()) => driver::device::get_count().call("cuDeviceGetCount")?,
        Err(DriverError(driver_sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        Err(error) => return Err(error).call("cuInit"),
    };
    let cards = usize::try_from(cards).unwrap_or(0);
    if ordinal >= cards {
        return Err(Error::NoSuchCard { ordinal, cards });
    }
    let device = driver::device::get(to_c(ordinal)).call("cuDeviceGet")?;
    use driver_sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    };
    let attribute = |attribute| {
        // SAFETY: the device is one that the driver has shown.
        let value = unsafe { driver::device::get_attribute(device, attribute) };
        Ok::<_, Error>(u32::try_from(value.call("cuDeviceGetAttribute")?).unwrap_or(0))
    };
    let mut driver_version = 0;
    // SAFETY: as above; the version goes to a number of ours.
    let memory = unsafe {
        driver_sys::cuDriverGetVersion(from_mut(&mut driver_version))
            .result()
            .call("cuDriverGetVersion")?;
        driver::device::total_mem(device).call("cuDeviceTotalMem")?
    };
    let info = CardInfo {
        ordinal,
        name: driver::device::get_name(device).call("cuDeviceGetName")?,
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver_version: u32::try_from(driver_version).unwrap_or(0),
    };
    Ok((device, info))
}

/// # Safety
/// A context is current.
unsafe fn allocate(bytes: usize) -> Result<driver_sys::CUdeviceptr> {
    // An allocation of nothing is an error to the driver.
    // SAFETY: the caller's.
    match unsafe { driver::malloc_sync(bytes.max(1)) } {
        Err(DriverError(driver_sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            let (free, _) = driver::mem_get_info().call("cuMemGetInfo")?;
            Err(Error::OutOfMemory {
                bytes: bytes as u64,
                free_bytes: free as u64,
            })
        }
        result => result.call("cuMemAlloc"),
    }
}

fn pointer(argument: &mut Argument) -> *mut c_void {
    match argument {
        Argument::Address(Address(value)) | Argument::U64(value) => from_mut(value).cast(),
        Argument::U32(value) => from_mut(value).cast(),
        Argument::F32(value) => from_mut(value).cast(),
    }
}

fn to_c(number: usize) -> c_int {
    c_int::try_from(number).expect("rows, widths and batches are fewer than 2^31")
}

/// Names the call that failed.
trait Call<T> {
    fn call(self, name: &'static str) -> Result<T>;
}

impl<T, E: fmt::Display> Call<T> for std::result::Result<T, E> {
    fn call(self, name: &'static str) -> Result<T> {
        self.map_err(|error| Error::Call {
            call: name,
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine with a card this opens it; on all others it says what is missing, and nothing panics.
    #[test]
    fn a_machine_without_a_card_is_told_what_it_lacks() {
        match Card::open(0, None) {
            Ok(card) => assert!(card.info().memory_bytes > 0),
            Err(Error::Library { .. } | Error::NoSuchCard { .. } | Error::TooOld { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
