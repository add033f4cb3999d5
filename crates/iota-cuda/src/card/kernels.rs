//! The kernels as a card's machine code: from a file, or compiled here.

use std::ffi::{CString, c_char};
use std::path::Path;

use cudarc::nvrtc::{result as nvrtc, sys};

use super::Call;
use crate::error::{Error, Result};
use crate::kernels::SOURCE;

/// Machine code for cards of this compute capability. Not PTX: a driver refuses that of a compiler which is newer than
/// itself.
pub(super) fn image((major, minor): (u32, u32), compiled: Option<&Path>) -> Result<Vec<u8>> {
    let architecture = format!("sm_{major}{minor}");
    let from_file =
        compiled.and_then(|folder| std::fs::read(folder.join(file_name(&architecture))).ok());
    from_file.map_or_else(|| compile(&architecture), Ok)
}

/// As `check_kernels.py` names it. Other sources have another name, so that kernels never go with a program that they were
/// not made for.
fn file_name(architecture: &str) -> String {
    format!(
        "iota-{:016x}-{architecture}.cubin",
        digest(SOURCE.as_bytes())
    )
}

/// FNV-1a: it has to tell versions apart, not to withstand anybody.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn compile(architecture: &str) -> Result<Vec<u8>> {
    // SAFETY: it only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Library {
            library: "libnvrtc",
            of: "part of CUDA's toolkit, and on PyPI as nvidia-cuda-nvrtc; LD_LIBRARY_PATH may name its folder, or compiled kernels stand in for it",
        });
    }
    let source = CString::new(SOURCE).expect("sources have no zeros");
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
    ];
    let program = nvrtc::create_program(&source, Some(c"kernels.cu")).call("nvrtcCreateProgram")?;
    // SAFETY: the program was made above and is destroyed below; its source lives on.
    unsafe {
        let image = match nvrtc::compile_program(program, &options) {
            Ok(()) => machine_code(program),
            Err(_) => Err(Error::Compile {
                architecture: architecture.to_owned(),
                log: log(program),
            }),
        };
        nvrtc::destroy_program(program).call("nvrtcDestroyProgram")?;
        image
    }
}

/// # Safety
/// The program is compiled.
unsafe fn machine_code(program: sys::nvrtcProgram) -> Result<Vec<u8>> {
    let mut length = 0;
    // SAFETY: the caller's; as many bytes are written as it said.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut length)
            .result()
            .call("nvrtcGetCUBINSize")?;
        let mut image = vec![0_u8; length];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast::<c_char>())
            .result()
            .call("nvrtcGetCUBIN")?;
        Ok(image)
    }
}

/// # Safety
/// The program is there.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the caller's.
    let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `digest(b"kernels")` of `check_kernels.py`.
    #[test]
    fn the_digest_is_the_one_that_the_script_makes() {
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"kernels"), 0xc086_f5bb_0204_36d1);
    }

    /// Needs NVRTC, not a card; elsewhere it says that it is missing.
    #[test]
    fn the_kernels_compile_for_both_kinds_of_card() {
        for architecture in ["sm_80", "sm_90"] {
            match compile(architecture) {
                Ok(image) => assert_eq!(image[..4], *b"\x7fELF", "{architecture}"),
                Err(Error::Library { library, .. }) => {
                    println!("skipped: there is no {library}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
