package arrows

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// module is the Go module path; it precedes every import path of ours.
const module = "vswitch"

// pkg is one directory of Go files.
type pkg struct {
	path      string              // relative to the module: "vswitch/fib"
	name      string              // of its package clause
	imports   map[string][]string // what its files, tests apart, import of ours -> the files that do
	std       map[string][]string // everything else they import
	doc       string              // package comment
	onlyTests bool
}

// file is one Go file.
type file struct {
	name string // relative to the root of the tree, with slashes
	src  []byte
	ast  *ast.File
}

var tree = sync.OnceValues(func() (files []*file, err error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Dir(root)
	}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "out") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, ".") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		files = append(files, &file{name: filepath.ToSlash(rel), src: src, ast: parsed})
		return nil
	})
	return files, err
})

var fset = token.NewFileSet()

func files(t *testing.T) []*file {
	t.Helper()
	fs, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	if len(fs) < 20 {
		t.Fatalf("only %d Go files found: the tree is not where this test looks for it", len(fs))
	}
	return fs
}

func (f *file) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// isGenerated follows https://go.dev/s/generatedcode.
func (f *file) isGenerated() bool { return ast.IsGenerated(f.ast) }

func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	pkgs := map[string]*pkg{}
	for _, f := range files(t) {
		dir := path.Dir(f.name)
		p := pkgs[dir]
		if p == nil {
			p = &pkg{path: dir, imports: map[string][]string{}, std: map[string][]string{}, onlyTests: true}
			pkgs[dir] = p
		}
		if f.isTest() {
			continue
		}
		p.onlyTests = false
		p.name = f.ast.Name.Name
		if f.ast.Doc != nil {
			p.doc += f.ast.Doc.Text()
		}
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
				p.imports[ours] = append(p.imports[ours], f.name)
			} else {
				p.std[imported] = append(p.std[imported], f.name)
			}
		}
	}
	return pkgs
}
