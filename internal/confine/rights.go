package confine

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dataplane are the rights of the process that moves frames: no capability, no other
// process, no file but those given and what every program of ours reads.
func Dataplane(files ...Files) Rights {
	return Rights{Calls: workCalls(os.Getpid(), forwardingCalls), Files: append(systemFiles(), files...)}
}

// Store are the rights of the process that is the embedded store.
func Store(files ...Files) Rights {
	return Rights{Calls: workCalls(os.Getpid()), Files: append(systemFiles(), files...)}
}

// Keeper are the rights of the process that keeps descriptors and starts the others:
// it binds low ports, reads all that its user may, writes to the files given, and runs
// what lies beside its program, where an upgrade puts another.
func Keeper(program string, files ...Files) Rights {
	return Rights{
		Capabilities: []int{unix.CAP_NET_BIND_SERVICE},
		Calls:        keeperCalls(),
		Files:        append([]Files{{"/", Read}, {filepath.Dir(program), Execute}}, files...),
	}
}

// systemFiles are what the Go runtime, its resolver and TLS read. Of /proc, what
// belongs to other processes stays closed: Landlock lets nobody look into a process
// that is not as bound as himself.
func systemFiles() []Files {
	files := []Files{
		{"/proc", Read}, {"/etc/nsswitch.conf", Read}, {"/etc/protocols", Read}, {"/etc/services", Read},
		{"/etc/ssl/certs", Read}, {"/etc/pki/tls/certs", Read}, {"/etc/pki/ca-trust/extracted", Read},
		{"/usr/share/ca-certificates", Read}, {"/usr/local/share/ca-certificates", Read},
	}
	return append(files, Replaceable("/etc/hosts", "/etc/resolv.conf")...)
}

// Replaceable gives what is needed to go on reading files that others of their names
// may replace: the directories that they lie in, and those that links lead to. Of a
// directory that holds all programs' files, such as /etc, it gives only the file
// itself, as it is now. Empty paths are skipped.
func Replaceable(paths ...string) []Files {
	var files []Files
	for _, p := range paths {
		if p == "" {
			continue
		}
		files = append(files, replaceable(p))
		if target, err := filepath.EvalSymlinks(p); err == nil && target != p {
			files = append(files, replaceable(target))
		}
	}
	return files
}

func replaceable(path string) Files {
	dir := filepath.Dir(path)
	if dir == "/" || filepath.Dir(dir) == "/" {
		return Files{path, Read}
	}
	return Files{dir, Read}
}
