package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// otherPrograms have flags of their own, and in what is typed to them vswitch is a name.
var otherPrograms = []string{"apt", "ctr", "debootstrap", "helm", "kubectl", "podman", "rootlesskit", "systemctl", "systemd-run"}

// notOurs are flags of others that the documentation names without their program.
var notOurs = []string{"allocate-node-cidrs", "service-cluster-ip-range"}

// ourPrograms beside this one have flags of their own: vswitch-cni, vswitch-bench,
// vswitch-demo.
var ourPrograms = []string{"../../cni", "../vswitch-bench", "../vswitch-demo", "../../internal"}

// TestDocumentedCommandsAndFlagsExist reads what a person would type from what is in
// backquotes or set off, in every page and in what is deployed.
func TestDocumentedCommandsAndFlagsExist(t *testing.T) {
	commands, flags := map[string]*cobra.Command{}, map[string]bool{}
	var walk func(c *cobra.Command, name string)
	walk = func(c *cobra.Command, name string) {
		commands[name] = c
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		}
		for _, sub := range c.Commands() {
			walk(sub, strings.TrimSpace(name+" "+sub.Name()))
		}
	}
	walk(newRoot(), "")
	for _, name := range append(notOurs, "help") {
		flags[name] = true
	}
	defined := regexp.MustCompile(`(?:String|Bool|Duration|Int|Uint\d*|StringArray|Var|Func)(?:Var)?(?:P)?\((?:&[\w.]+, )?"([a-z][a-z0-9-]+)"`)
	for _, dir := range ourPrograms {
		eachFile(t, dir, ".go", func(_, text string) {
			for _, m := range defined.FindAllStringSubmatch(text, -1) {
				flags[m[1]] = true
			}
		})
	}

	flag := regexp.MustCompile(`(?:^|[\s(\[,|"])--([a-z][a-z0-9-]*)`)
	command := regexp.MustCompile(`(?:^|[\s/+(=])vswitch,? ([a-z][a-z-]+)(?:,? ([a-z][a-z-]+))?`)
	seen := 0
	check := func(path, text string) {
		if first, _, _ := strings.Cut(strings.TrimPrefix(text, "sudo "), " "); slices.Contains(otherPrograms, first) {
			return
		}
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			if seen++; !flags[m[1]] {
				t.Errorf("%s: there is no --%s: %s", path, m[1], text)
			}
		}
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			if seen++; commands[m[1]] == nil {
				t.Errorf("%s: there is no command `vswitch %s`: %s", path, m[1], text)
			} else if sub := commands[m[1]].Commands(); len(sub) > 0 && m[2] != "" && commands[m[1]+" "+m[2]] == nil {
				t.Errorf("%s: there is no command `vswitch %s %s`: %s", path, m[1], m[2], text)
			}
		}
	}
	span := regexp.MustCompile("`([^`]+)`")
	pages := func(path, text string) {
		if strings.Contains(path, "CHANGELOG") || strings.Contains(path, "/adr/") { // what was, and what might have been
			return
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "    ") {
				check(path, strings.TrimSpace(line))
			}
		}
		for _, m := range span.FindAllStringSubmatch(text, -1) {
			check(path, strings.ReplaceAll(m[1], "\n", " "))
		}
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages("README.md", string(text))
	eachFile(t, "../../docs", ".md", pages)
	eachFile(t, "../../deploy", ".service", func(path, text string) {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "Exec") {
				check(path, line)
			}
		}
	})
	eachFile(t, "../../deploy/manifests", ".yaml", func(path, text string) {
		for line := range strings.Lines(text) {
			if strings.Contains(line, "command: [") {
				check(path, line)
			}
		}
	})
	if seen < 100 {
		t.Errorf("only %d commands and flags found: is the documentation elsewhere?", seen)
	}
}

// eachFile calls f for every file below dir that ends so.
func eachFile(t *testing.T, dir, ext string, f func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ext || slices.Contains(strings.Split(path, "/"), "testdata") {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil {
			f(path, string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
