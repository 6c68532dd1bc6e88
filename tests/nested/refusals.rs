//! Bad input: each kind has a clear message, a status of its own, and leaves nothing behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testing::bare::{POWERS_OFF, image};
use testing::lab::{Lab, artifact, program};
use testing::scratch::Scratch;

fn tessera(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("tessera"));
    command.arg("run").args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the refusal, and checks its status and that its message has these words.
fn refused(mut command: Command, status: i32, words: &[&str]) -> Output {
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
    assert!(!message.contains("panicked at"), "{message}");
    output
}

fn kernel_is_refused(path: &Path, status: i32, words: &[&str]) {
    let path = path.to_str().unwrap();
    refused(tessera(&["--kernel", path, "--serial", "none"]), status, words);
}

#[test]
fn kernels_that_are_none() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let whole = fs::read(artifact("Image")).unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut image = whole[..1 << 20].to_vec();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            image
        };
        let mut bzimage = vec![0; 8192];
        bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let gigabytes = with(16, &(3u64 << 30).to_le_bytes());
        let tiny = with(16, &4096u64.to_le_bytes());
        let mut damaged = Vec::new();
        std::io::Write::write_all(
            &mut flate2::write::GzEncoder::new(&mut damaged, flate2::Compression::fast()),
            &whole[..1 << 20],
        )
        .unwrap();
        damaged.truncate(damaged.len() / 2);
        let cases: [(&str, &[u8], i32, &str); 9] = [
            ("empty", b"", 65, "is empty"),
            ("text", b"#!/bin/sh\necho no kernel\n", 65, "too short"),
            ("short", &whole[..40], 65, "too short"),
            ("cut", &whole[..whole.len() / 2], 65, "cut off"),
            ("bzimage", &bzimage, 65, "x86"),
            ("elf", &fs::read("/proc/self/exe").unwrap()[..8192], 65, "ELF"),
            ("huge", &gigabytes, 65, "claims"),
            ("tiny", &tiny, 65, "cut off"),
            ("damaged", &damaged, 65, "damaged or cut off"),
        ];
        for (name, bytes, status, word) in cases {
            kernel_is_refused(&scratch.file(name, bytes), status, &["tessera: ", word]);
        }
        kernel_is_refused(&scratch.join("missing"), 66, &["missing", "No such file"]);
        kernel_is_refused(scratch.path(), 66, &["not a regular file"]);
        kernel_is_refused(Path::new("/dev/zero"), 66, &["not a regular file"]);
    });
}

#[test]
fn a_header_that_lies_about_the_kernels_size() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        // Claims less than the file has, and has no section table that says otherwise.
        let mut lie = image(&[0x1400_0000; 4096]);
        lie[16..24].copy_from_slice(&4096u64.to_le_bytes());
        kernel_is_refused(&scratch.file("less", &lie), 65, &["claims 4 KiB"]);
        // Claims more than the guest's memory.
        lie[16..24].copy_from_slice(&(600u64 << 20).to_le_bytes());
        kernel_is_refused(&scratch.file("more", &lie), 65, &["--memory"]);
    });
}

#[test]
fn what_does_not_fit() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let kernel = artifact("Image");
        let kernel = kernel.to_str().unwrap();
        let initrd = scratch.join("initrd");
        fs::File::create(&initrd).unwrap().set_len(500 << 20).unwrap();
        let initrd = initrd.to_str().unwrap();
        let fits = ["--kernel", kernel, "--initrd", initrd, "--serial", "none"];
        refused(tessera(&fits), 65, &["initrd", "does not fit", "--memory"]);
        let empty = scratch.file("empty", "");
        let arguments = ["--kernel", kernel, "--initrd", empty.to_str().unwrap()];
        refused(tessera(&arguments), 65, &["is empty"]);
        let arguments = ["--kernel", kernel, "--initrd", "/nowhere/initrd"];
        refused(tessera(&arguments), 66, &["/nowhere/initrd"]);
        for (memory, status, word) in [
            ("0", 78, "too little"),
            ("62M", 78, "too little"),
            ("513M", 78, "not a multiple of 2 MiB"),
            ("100000001", 78, "not a multiple"),
            ("16E", 64, "16E"),
            ("8E", 78, "more than"),
            ("4095T", 69, "give less"),
            ("lots", 64, "lots"),
            ("-1", 64, "-1"),
        ] {
            let arguments = ["--kernel", kernel, "--memory", memory];
            refused(tessera(&arguments), status, &[word]);
        }
        for (cpus, status, word) in [
            ("0", 78, "at least one"),
            ("513", 69, "512"),
            ("100000", 69, "512"),
            ("two", 64, "two"),
        ] {
            refused(tessera(&["--kernel", kernel, "--cpus", cpus]), status, &[word]);
        }
        let line = "x".repeat(2048);
        refused(tessera(&["--kernel", kernel, "--cmdline", &line]), 78, &["2047", "shorten"]);
        refused(tessera(&["--kernel", kernel, "--cmdline", "a\nb"]), 78, &["printable"]);
    });
}

#[test]
fn options_and_configurations_that_make_no_sense() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let kernel = artifact("Image");
        let kernel = kernel.to_str().unwrap();
        refused(tessera(&[]), 78, &["--kernel"]);
        refused(tessera(&["--kernle", kernel]), 64, &["--kernle"]);
        refused(tessera(&["--kernel", kernel, "--kernel", kernel]), 64, &["--kernel"]);
        refused(tessera(&["--kernel", kernel, "--mte", "maybe"]), 64, &["maybe"]);
        refused(tessera(&["--kernel", kernel, "--serial", "com1"]), 78, &["com1", "stdio"]);
        let taken = format!("file:{kernel}");
        refused(tessera(&["--kernel", kernel, "--serial", &taken]), 78, &["kernel", "serial"]);
        for (name, text, status, word) in [
            ("syntax", "{", 78, "line 1"),
            ("unknown", r#"{"boot-sauce": {}}"#, 78, "boot-sauce"),
            ("inner", r#"{"boot-source": {"kernel": "x"}}"#, 78, "kernel"),
            ("type", r#"{"machine-config": {"vcpu_count": "two"}}"#, 78, "two"),
            ("negative", r#"{"machine-config": {"mem_size_mib": -1}}"#, 78, "-1"),
            ("huge", r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"mem_size_mib": 18446744073709551615}}"#, 78, "mem_size_mib"),
            ("both", r#"{"boot-source": {"kernel_image_path": "k"}, "serial": {"serial_out_path": "a", "target": "none"}}"#, 78, "keep one"),
            ("device", r#"{"pmem": [{"id": "root"}]}"#, 78, "no such device"),
            ("smt", r#"{"machine-config": {"smt": true}}"#, 78, "only false"),
        ] {
            let file = scratch.file(name, text);
            refused(tessera(&["--config", file.to_str().unwrap()]), status, &[word]);
        }
        refused(tessera(&["--config", "/nowhere.json"]), 66, &["/nowhere.json"]);
        refused(tessera(&["--config", "/"]), 66, &["configuration"]);
    });
}

#[test]
fn consoles_and_sockets_that_cannot_be_opened() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let kernel = artifact("Image");
        let run = ["--kernel", kernel.to_str().unwrap(), "--cmdline", "quiet"];
        let with = |more: &[&str]| tessera(&[&run[..], more].concat());
        refused(with(&["--serial", "file:/nowhere/console"]), 73, &["/nowhere/console"]);
        refused(with(&["--serial", "file:/"]), 73, &["directory"]);
        refused(with(&["--serial", "socket:/nowhere/console"]), 73, &["/nowhere/console"]);
        refused(with(&["--api-sock", "/nowhere/api", "--serial", "none"]), 73, &["/nowhere/api"]);
        let long = format!("/{}", "x".repeat(120));
        refused(with(&["--api-sock", &long, "--serial", "none"]), 73, &["shorter"]);
        let file = scratch.file("file", "precious");
        let path = file.to_str().unwrap();
        refused(with(&["--api-sock", path, "--serial", "none"]), 73, &["no socket"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert_eq!(scratch.names(), ["file"]);
    });
}

#[test]
fn a_full_disk_ends_the_vm() {
    Lab::new().run(|| {
        let kernel = artifact("Image");
        let run = ["--kernel", kernel.to_str().unwrap(), "--serial", "file:/dev/full"];
        refused(tessera(&run), 74, &["console", "No space left"]);
    });
}

#[test]
fn a_host_without_kvm_or_permission() {
    Lab::new().as_root().run(|| {
        let kernel = artifact("Image");
        let kernel = kernel.to_str().unwrap();
        let mut without = Command::new("unshare");
        let script = format!(
            "mount -t tmpfs t /dev && exec {} run --kernel {kernel} --serial none",
            program("tessera").display()
        );
        without.args(["-m", "sh", "-c", &script]).stdin(Stdio::null());
        refused(without, 69, &["/dev/kvm", "has no KVM"]);

        let mut nobody = tessera(&["--kernel", kernel, "--serial", "none"]);
        nobody.uid(65534).gid(65534);
        refused(nobody, 77, &["/dev/kvm", "group"]);
    });
}

#[test]
fn a_message_that_nobody_can_read_changes_no_status() {
    Lab::new().run(|| {
        let mut command = tessera(&["--kernel", "/nowhere/kernel"]);
        command.stderr(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(command.status().unwrap().code(), Some(66));
    });
}

#[test]
fn a_zboot_kernel_that_asks_for_all_memory() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut file = vec![0; 0x1000];
        file[0..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
        // A frame with a window of 2^37 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 27 << 3, 1, 0, 0];
        file[12..16].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        file[24..28].copy_from_slice(b"zstd");
        file.extend(frame);
        kernel_is_refused(&scratch.file("bomb", &file), 65, &["128 GiB", "128 MiB"]);
    });
}

#[test]
#[ignore = "long"]
fn an_initrd_over_two_gibibytes_is_loaded() {
    Lab::new().memory("8G").run(|| {
        let scratch = Scratch::new();
        // Powers off by PSCI: mov w0, #0x8400_0008; hvc #0.
        let kernel = scratch.file("off", image(&POWERS_OFF));
        let initrd = scratch.join("initrd");
        fs::File::create(&initrd).unwrap().set_len(2100 << 20).unwrap();
        let initrd = initrd.to_str().unwrap();
        let arguments =
            ["--kernel", kernel.to_str().unwrap(), "--initrd", initrd, "--memory", "3G"];
        assert_eq!(tessera(&arguments).status().unwrap().code(), Some(0));
    });
}

#[test]
fn the_doctor_tells_hosts_apart() {
    let outcome = |name: &str| {
        let output = Command::new(program("tessera")).args(["doctor", "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == name).unwrap()
    };
    Lab::new().append("arm64.nomte").run(|| {
        assert_eq!(outcome("KVM")["outcome"], "ok");
        assert_eq!(outcome("GIC")["outcome"], "ok");
        assert_eq!(outcome("MTE")["outcome"], "warn");
        let mut without = Command::new("unshare");
        let script =
            format!("mount -t tmpfs t /dev && exec {} doctor", program("tessera").display());
        without.args(["-m", "sh", "-c", &script]);
        let output = without.output().unwrap();
        assert_eq!(output.status.code(), Some(13), "{output:?}");
    });
}
